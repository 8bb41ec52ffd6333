"""What can be wrong with a WebSocket's frames, on each of uvicorn's three stacks."""

import asyncio
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

pytestmark = pytest.mark.anyio

HANDSHAKE = (
    b"GET /rooms/lobby?user=%d HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"sec-websocket-extensions: permessage-deflate; client_no_context_takeover; server_no_context_takeover\r\n\r\n"
)
MASK = b"\x01\x02\x03\x04"
TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
SAVED = 'outlive_runs_total{outcome="completed",task="save_transcript"}'
# The command itself, with another of uvicorn's stacks for WebSockets.
PROGRAM = """
import sys, uvicorn
from outlive.cli import main

config, ws = uvicorn.Config, sys.argv.pop()
uvicorn.Config = lambda app, **options: config(app, **options | {"ws": ws})
main()
"""


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    mask: bool = True,
    size: int | None = None,
) -> bytes:
    """One frame (RFC 6455, section 5.2); its length may lie."""
    size = len(payload) if size is None else size
    first = bytes([fin << 7 | rsv << 4 | opcode])
    bit = mask << 7
    if size < 126:
        length = bytes([bit | size])
    elif size < 65_536:
        length = bytes([bit | 126]) + struct.pack("!H", size)
    else:
        length = bytes([bit | 127]) + struct.pack("!Q", size)
    if not mask:
        return first + length + payload
    masked = bytes(byte ^ MASK[index % 4] for index, byte in enumerate(payload))
    return first + length + MASK + masked


def compressed(text: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return (compressor.compress(text) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


def wrong_frames(secret: bytes) -> dict[str, bytes]:
    """Each is an end of the connection."""
    return {
        "unmasked": frame(TEXT, secret, mask=False),
        "reserved opcode 3": frame(0x3, secret),
        "reserved opcode 11": frame(0xB),
        "reserved bits": frame(TEXT, secret, rsv=0b011),
        "bad UTF-8": frame(TEXT, secret + b"\xff\xfe"),
        "bad UTF-8 in parts": frame(TEXT, b"\xe2\x82", fin=False) + frame(0x0, b"\x28"),
        "UTF-8 cut short": frame(TEXT, b"\xf0\x9f"),
        "surrogates": frame(TEXT, b"\xed\xa0\x80"),
        "a part of nothing": frame(0x0, secret),
        "a message within another": frame(TEXT, secret, fin=False) + frame(TEXT, secret),
        "a ping in parts": frame(PING, fin=False),
        "a long ping": frame(PING, b"x" * 126),
        "a close of one byte": frame(CLOSE, b"\x03"),
        "a close with code 0": frame(CLOSE, struct.pack("!H", 0)),
        "a close with code 1005": frame(CLOSE, struct.pack("!H", 1005)),
        "a close with a reason of bad UTF-8": frame(CLOSE, struct.pack("!H", 1000) + b"\xff"),
        "a close with code 65535": frame(CLOSE, struct.pack("!H", 65_535)),
        "2^63 bytes told": frame(TEXT, b"x", size=2**63),
        "70,000 bytes": frame(TEXT, b"x" * 70_000),
        "80,000 bytes in parts": frame(TEXT, b"x" * 4_000, fin=False)
        + frame(0x0, b"x" * 4_000, fin=False) * 19,
        "10 MB, deflated": frame(TEXT, compressed(b"x" * 10_000_000), rsv=0b100),
        "what isn't deflated": frame(TEXT, secret + b"\xff" * 20, rsv=0b100),
        "a long line": frame(TEXT, b"x" * 2_001),
        "bytes": frame(BINARY, secret),
        "noise": bytes(range(256)) * 8,
        "HTTP": b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
    }


def strange_frames(secret: bytes) -> dict[str, bytes]:
    """After each the client vanishes."""
    return {
        "nothing": b"",
        "2^40 bytes told": frame(TEXT, b"x", size=2**40),
        "half a head": frame(TEXT, secret)[:1],
        "half a payload": frame(TEXT, secret)[:-3],
        "half a message": frame(TEXT, secret, fin=False),
        "2,000 empty parts": frame(TEXT, b"", fin=False) + frame(0x0, b"", fin=False) * 2_000,
        "2,000 pings": frame(PING, b"x") * 2_000,
        "2,000 pongs": frame(PONG, b"x") * 2_000,
        "a euro in parts": frame(TEXT, b"\xe2", fin=False) + frame(PING) + frame(0x0, b"\x82\xac"),
    }


@pytest.mark.parametrize(
    "ws",
    [
        pytest.param(
            "websockets",
            marks=pytest.mark.reliability("abuse", "Malformed, oversized, unmasked frames, on websockets"),
        ),
        pytest.param(
            "websockets-sansio",
            marks=pytest.mark.reliability(
                "abuse", "Malformed, oversized, unmasked frames, on websockets-sansio"
            ),
        ),
        pytest.param(
            "wsproto",
            marks=pytest.mark.reliability("abuse", "Malformed, oversized, unmasked frames, on wsproto"),
        ),
    ],
)
async def test_frames_that_break_the_rules_end_their_connection_alone(
    attacked: Any, ws: str, result: Callable[[str], None]
) -> None:
    async def visit(number: int, frames: bytes, *, until_the_end: bool) -> bool:
        """Enter the room, send the frames, and say whether the server ended the connection, if that was waited for."""
        reader, writer = await asyncio.open_connection(target.host, target.port)
        writer.write(HANDSHAKE % number)
        ended = True
        try:
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
            with suppress(ConnectionError):
                await reader.read(2)  # the welcome begins
                writer.write(frames)
                await writer.drain()
                if until_the_end:
                    async with asyncio.timeout(30):
                        while await reader.read(65_536):
                            pass
        except TimeoutError:
            ended = False
        finally:
            writer.transport.abort()
        return ended

    settings = {"command": ("-W", "ignore", "-c", PROGRAM, "serve", ws), "WS_PING_INTERVAL": 60}
    async with attacked(**settings) as target:
        secret = target.secret.encode()
        wrong, strange = wrong_frames(secret), strange_frames(secret)
        # The server may wait for ten seconds for the client's close frame, so all at once.
        ended = await asyncio.gather(
            *(visit(number, frames, until_the_end=True) for number, frames in enumerate(wrong.values()))
        )
        assert [name for name, end in zip(wrong, ended, strict=True) if not end] == []
        for number, frames in enumerate(strange.values(), len(wrong)):
            await visit(number, frames, until_the_end=False)
        visits = len(wrong) + len(strange)
        async with asyncio.timeout(20):
            while await target.sample(SAVED) < visits:  # noqa: ASYNC110 - it happens elsewhere
                await asyncio.sleep(0.05)
        assert await target.sample('outlive_connections{route="/rooms/{room}",transport="websocket"}') == 0
    assert target.account["submitted"] == 3 * visits
    result(
        f"{len(wrong)} kinds of wrong frames ended their connection; all {visits} sessions saved, "
        f"{target.account['submitted']} runs with one outcome each"
    )
