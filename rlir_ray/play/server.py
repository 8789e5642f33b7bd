"""The page to drive world models in: one WebSocket a player, one generation at a time.

The network reaches no file: frames and recordings travel in memory.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import html
import io
import ipaddress
import json
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.requests import HTTPConnection, Request

from rlir_ray.play.controls import action_of, controls_of
from rlir_ray.play.driving import Drive, View

MAX_PLAYERS = 4
MAX_MESSAGE_BYTES = 4096
# A player who sends nothing for this long makes room for another one.
IDLE_S = 900.0
# Longest side of a picture of a context to choose from, in pixels.
THUMBNAIL = 96
# The page loads nothing from elsewhere.
POLICY = "default-src 'self' 'unsafe-inline' data:; connect-src 'self' ws: wss:"
REFUSED, IDLE, FULL = 4403, 4408, 4429
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]", "::1")


@dataclass(frozen=True, kw_only=True, slots=True)
class PlaySettings:
    """What the page shows, and who may open it."""

    title: str
    token: str = ""
    """Needed in the address and by the WebSocket; empty: only this machine reaches the page."""
    max_players: int = MAX_PLAYERS


def new_token() -> str:
    return secrets.token_urlsafe(16)


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def build_app(make_drive: Callable[[], Drive], settings: PlaySettings) -> FastAPI:
    """Build the application.

    Args:
        make_drive: makes the drive of a new player.
        settings: title, token and number of players.
    """
    return _Play(make_drive, settings).app


class _Play:
    """The players of a page."""

    def __init__(self, make_drive: Callable[[], Drive], settings: PlaySettings) -> None:
        self.make_drive, self.settings = make_drive, settings
        self.num_players = 0
        self.drives: dict[str, Drive] = {}
        # One generation at a time, whoever asked for it.
        self.generating = asyncio.Lock()
        self.app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
        self.app.add_api_route("/", self.page, methods=["GET"])
        self.app.add_api_route("/recording/{player}/{model}", self.recording, methods=["GET"])
        self.app.add_api_websocket_route("/drive", self.drive)

    def _may_enter(self, connection: HTTPConnection) -> bool:
        """Check the token; without one, check that the page was opened by this machine's own name.

        A page of another site could otherwise reach this server through the browser of its user.
        """
        if self.settings.token:
            return hmac.compare_digest(connection.query_params.get("token", ""), self.settings.token)
        host = urlsplit(f"//{connection.headers.get('host', '')}").hostname or ""
        return host in LOCAL_NAMES

    def _is_same_origin(self, connection: HTTPConnection) -> bool:
        origin = connection.headers.get("origin")
        return origin is None or urlsplit(origin).netloc == connection.headers.get("host")

    async def page(self, request: Request) -> Response:
        if not self._may_enter(request):
            return JSONResponse({"error": "the address must end with the token that the command printed"}, 403)
        text = files("rlir_ray.play").joinpath("page.html").read_text(encoding="utf-8")
        page = text.replace("{{title}}", html.escape(self.settings.title))
        return HTMLResponse(page, headers={"Content-Security-Policy": POLICY})

    async def recording(self, request: Request, player: str, model: str) -> Response:
        drive = self.drives.get(player)
        if not self._may_enter(request) or drive is None:
            return JSONResponse({"error": "there is no such player"}, 404)
        try:
            async with self.generating:
                content = await asyncio.to_thread(drive.recording, model)
        except ValueError as error:
            return JSONResponse({"error": str(error)}, 400)
        headers = {"Content-Disposition": 'attachment; filename="drive.zip"'}
        return Response(content, media_type="application/zip", headers=headers)

    async def drive(self, socket: WebSocket) -> None:
        if not (self._may_enter(socket) and self._is_same_origin(socket)):
            await socket.close(REFUSED)
            return
        await socket.accept()
        if self.num_players >= self.settings.max_players:
            await socket.send_json({"error": f"{self.settings.max_players} players drive already; try again later"})
            await socket.close(FULL)
            return
        self.num_players += 1
        player = secrets.token_hex(8)
        drive: Drive | None = None
        try:
            async with self.generating:
                drive = self.drives[player] = await asyncio.to_thread(self.make_drive)
            await socket.send_json(_hello(drive, player))
            await self._play(socket, drive)
        except WebSocketDisconnect:
            pass
        except TimeoutError:
            await socket.close(IDLE)
        finally:
            self.num_players -= 1
            self.drives.pop(player, None)
            if drive is not None:
                drive.close()

    async def _play(self, socket: WebSocket, drive: Drive) -> None:
        """Answer a player's messages until the player leaves or sends nothing for `IDLE_S`."""
        while True:
            text = await asyncio.wait_for(socket.receive_text(), IDLE_S)
            started = time.perf_counter()
            try:
                async with self.generating:
                    view = await asyncio.to_thread(act, drive, text)
            except ValueError as error:
                await socket.send_json({"error": str(error)})
                continue
            await socket.send_json(_plain(view) | {"seconds": time.perf_counter() - started})


def act(drive: Drive, text: str) -> View:
    """Do what a message asks for.

    Args:
        drive: the player's.
        text: JSON: ``{"do": "step", "action": {FIELD: VALUE}}``, ``{"do": "undo"}``, or ``{"do": "reset", "context":
            N}``.

    Raises:
        ValueError: the message is too long, no JSON, or asks for something else.
    """
    if len(text) > MAX_MESSAGE_BYTES:
        raise ValueError(f"a message must be at most {MAX_MESSAGE_BYTES} characters, got {len(text)}; send less")
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise ValueError(f'a message must be a JSON object, got {text[:40]!r}; send for example {{"do": "undo"}}')
    match message.get("do"):
        case "step":
            values = message.get("action", {})
            if not isinstance(values, dict):
                raise ValueError(f"an action must be an object of fields, got {str(values)[:40]!r}; send {{}} for none")
            return drive.step(action_of(values, drive.space, drive.names))
        case "undo":
            return drive.undo()
        case "reset":
            context = message.get("context", 0)
            if isinstance(context, bool) or not isinstance(context, int):
                raise ValueError(f"a context must be a number, got {str(context)[:40]!r}; send 0 for the first")
            return drive.reset(context)
        case other:
            raise ValueError(f"do must be step, undo or reset, got {str(other)[:40]!r}; correct it")


def _hello(drive: Drive, player: str) -> dict[str, Any]:
    """Return what a page needs once, and the first view."""
    return _plain(drive.view()) | {
        "player": player,
        "models": list(drive.simulators),
        "fields": list(drive.names),
        "controls": controls_of(drive.space, drive.names).to_json(),
        "contexts": [_picture(_small(frames[-1])) for frames in drive.contexts],
        "can_read": drive.idm is not None,
    }


def _plain(view: View) -> dict[str, Any]:
    return {
        "number": view.number,
        "frames": {name: _picture(frame) for name, frame in view.frames.items()},
        "readings": {name: [asdict(each) for each in found] for name, found in view.readings.items()},
        "followed": dict(view.followed),
    }


def _small(frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    step = max(1, max(frame.shape[:2]) // THUMBNAIL)
    return frame[::step, ::step]


def _picture(frame: npt.NDArray[np.uint8]) -> str:
    """Return a frame as the address of a PNG."""
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(frame).save(content, format="PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


def serve(app: FastAPI, host: str, port: int, announce: Callable[[int], None]) -> None:
    """Serve until the process is interrupted; `announce` is called with the port once it is bound.

    Raises:
        ValueError: the address cannot be used.
    """
    import socket

    import uvicorn

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise ValueError(f"--port must be free on {host}, got {port} ({error.strerror}); choose another") from None
    announce(bound.getsockname()[1])
    config = uvicorn.Config(app, log_level="warning", ws_max_size=MAX_MESSAGE_BYTES * 4, access_log=False)
    uvicorn.Server(config).run(sockets=[bound])


def contexts_of(frames: npt.NDArray[np.uint8], most: int = 12) -> Sequence[int]:
    """Return the numbers of contexts that are spread evenly over all of them."""
    return sorted({int(number) for number in np.linspace(0, len(frames) - 1, min(most, len(frames)))})
