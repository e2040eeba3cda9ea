"""The report's pages as HTML text: templates with the style that all pages share."""

from __future__ import annotations

from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

__all__ = ["page_part", "render"]


def render(template: str, **values: Any) -> str:
    """Return a page.

    Parameters
    ----------
    template
        Path below this package; it extends page/templates/base.jinja.
    values
        Of the template; text in them is escaped, `Markup` is not.
    """
    environment = Environment(
        loader=PackageLoader("repmode_cl.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(style=page_part("page/static/page.css"), **values)


def page_part(path: str) -> Markup:
    """Return a file below this package, to stand in a page as it is."""
    return Markup(resources.files("repmode_cl.report").joinpath(path).read_text(encoding="utf-8"))
