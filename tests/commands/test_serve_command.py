"""`repmode-cl serve` as a process: what it prints, refuses and leaves."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from serving import image_bytes, make_served_model
from typer.testing import CliRunner

from repmode_cl.cli.app import app
from repmode_cl.serve.settings import ServeSettings


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["serve", *map(str, arguments)])
    return result.exit_code, result.output


def test_what_cannot_be_served_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, said = run(tmp_path / "none")
    assert (code, "error: " in said, "none" in said) == (2, True, True)
    model = make_served_model(tmp_path / "model")
    assert "is named twice" in run(model, tmp_path / "." / "model")[1]
    empty = tmp_path / "token"
    empty.write_text("\n")
    assert "its first line is empty" in run(model, "--token-file", empty)[1]
    empty.write_text("short\n")
    assert "at least 16" in run(model, "--token-file", empty)[1]
    code, said = run(model, "--keep", "inf")
    assert (code, "--keep inf: a finite number of minutes is needed" in said) == (2, True)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"port {port} of 127.0.0.1 cannot be used" in run(model, "--port", port)[1]
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "uvicorn" else real(name, *rest)
    )
    code, said = run(model)
    assert (code, "uvicorn" in said, "[serve]" in said) == (2, True, True)


def test_a_token_that_was_chosen_is_not_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[ServeSettings] = []

    def run_server(paths: object, settings: ServeSettings, ready: Callable[[str], None]) -> None:
        served.append(settings)
        ready("http://0.0.0.0:1/")

    monkeypatch.setattr("repmode_cl.serve.server.run_server", run_server)
    token = tmp_path / "token"
    token.write_text("a-token-of-this-test\n")
    code, said = run(tmp_path, "--host", "0.0.0.0", "--token-file", token)
    assert (code, "a-token-of-this-test" in said, served[0].token) == (0, False, "a-token-of-this-test")
    monkeypatch.setenv("REPMODE_CL_TOKEN", "another-token-of-this-test")
    assert "another-token" not in run(tmp_path, "--max-upload", "1MB", "--keep", "5")[1]
    assert served[1] == ServeSettings(token="another-token-of-this-test", max_upload=10**6, keep_seconds=300)
    monkeypatch.delenv("REPMODE_CL_TOKEN")
    _, said = run(tmp_path, "--host", "0.0.0.0")
    assert f"?token={served[2].token} " in said
    assert served[2].token not in (None, "")
    run(tmp_path)
    assert served[3] == ServeSettings()
    token.write_text("a-token-of-this-test\n", encoding="utf-8-sig")
    run(tmp_path, "--token-file", token)
    assert served[4].token == "a-token-of-this-test"


@pytest.mark.parametrize(("host", "shown"), [("0.0.0.0", socket.gethostname()), ("127.0.0.1", "127.0.0.1")])
def test_the_address_can_be_opened_and_its_port_names_the_cookie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, shown: str
) -> None:
    """Two servers with port 0 of one machine have two cookies."""
    made: list[ServeSettings] = []
    monkeypatch.setattr("repmode_cl.serve.server.make_app", lambda settings, *_: made.append(settings))
    monkeypatch.setattr("uvicorn.Server.run", lambda self, sockets: None)
    monkeypatch.setenv("REPMODE_CL_TOKEN", "a-token-of-this-test")
    code, said = run(make_served_model(tmp_path / "model"), "--host", host, "--port", 0)
    assert (code, made[0].port > 0) == (0, True)
    assert f" at http://{shown}:{made[0].port}/ (" in said
    assert (f"note: {host} stands for all addresses of this machine" in said) == (shown != host)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows sends no Ctrl-C to a process group")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_it_cleanly_and_leaves_nothing(tmp_path: Path, sent: signal.Signals) -> None:
    model, temporary = make_served_model(tmp_path / "model"), tmp_path / "tmp"
    temporary.mkdir()
    command = [sys.executable, "-m", "repmode_cl", "serve", str(model), "--port", "0", "--host", "0.0.0.0"]
    with subprocess.Popen(
        command,
        env={**os.environ, "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None
        found = re.search(r"at http://[^/:]+:(\d+)/\?token=(\S{43}) ", server.stdout.readline())
        assert found is not None
        request = urllib.request.Request(
            f"http://127.0.0.1:{found[1]}/api/images?name=a.tif",
            image_bytes(),
            {"Authorization": f"Bearer {found[2]}"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert answer.status == 201
        assert list(temporary.rglob("a.tif"))
        server.send_signal(sent)
        _, said = server.communicate(timeout=60)
    assert server.returncode == 0
    assert "all images and results are deleted" in said
    assert "can read the token" in said
    assert "Traceback" not in said
    assert list(temporary.iterdir()) == []
