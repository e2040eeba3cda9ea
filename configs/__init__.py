"""Ready configurations, shipped as data: ``repmode-cl config`` lists them, ``config NAME`` prints one."""

__all__: list[str] = []
