"""`yanchat token`: mint a JWT, for development; and whose token one is."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from yanchat.cli.call import Call
from yanchat.cli.render import note, warn
from yanchat.errors import Refused, UsageError

if TYPE_CHECKING:
    from yanchat.config import AuthSettings


def token(
    call: Call,
    sub: Annotated[str, typer.Option(metavar="OPENID", help="Whose it is.")],
    name: Annotated[str | None, typer.Option(metavar="NAME", help="The name that others see.")] = None,
    ttl: Annotated[str, typer.Option(metavar="DURATION", help="How long it is good, as 90s, 8h or 30d.")] = "1h",
    key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", readable=False, help="The secret or the private key (PEM); else auth.key_file's secret."
        ),
    ] = None,
    kid: Annotated[
        str | None, typer.Option(metavar="ID", help="The key's id, where nodes have a JSON Web Key Set.")
    ] = None,
) -> None:
    """Mint a token that lets a client in, for development.

    The audience and the issuer are those of the settings. In production an identity provider mints the tokens, and the
    nodes have its public keys only.
    """
    from yanchat.config.values import parse_option
    from yanchat.gateway.user import MAX_NAME
    from yanchat.protocol.frames import check_openid

    try:
        check_openid(sub, f"--sub {sub!r}")
        seconds = parse_option(ttl)
    except Refused as refused:
        raise UsageError(str(refused)) from None
    except ValueError as error:
        raise UsageError(f"--ttl {ttl} is not possible: {error}.") from None
    if seconds < 1 or seconds > 1e9:
        raise UsageError(f"--ttl {ttl} is not possible: it must be 1s to 10000d.")
    if name is not None and (len(name) > MAX_NAME or not name.isprintable()):
        raise UsageError(f"--name must have at most {MAX_NAME} printable characters.")
    expires = int(time.time() + seconds)
    minted = _mint(call.settings().auth, key_file, kid, {"sub": sub, "exp": expires} | ({"name": name} if name else {}))
    call.out.document({"token": minted, "sub": sub, "expires_at": expires}, minted)
    if call.out.form == "person":
        until = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(expires))
        note(f"Good until {until}. Whoever has it is {sub}; YANCHAT_TOKEN hands it to send and listen.")


def _mint(auth: AuthSettings, key_file: Path | None, kid: str | None, claims: dict[str, Any]) -> str:
    import jwt

    from yanchat.gateway.keys import read_signing_key

    if key_file is None and not auth.key_file:
        raise UsageError(
            "There is nothing to sign with: give --key-file FILE, or set auth.key_file; `openssl rand -hex 32 > FILE`"
            " makes a secret."
        )
    key = read_signing_key(str(key_file or auth.key_file), "--key-file" if key_file else "auth.key_file")
    if auth.mode == "jwt" and key.algorithm not in auth.algorithms:
        warn(f"The nodes of these settings take {' and '.join(auth.algorithms)} only; this is {key.algorithm}.")
    given = {"iat": int(time.time()), **claims}
    given |= {claim: value for claim, value in (("aud", auth.audience), ("iss", auth.issuer)) if value}
    return jwt.encode(given, key.key, key.algorithm, headers={"kid": kid} if kid else None)


def owner(token: str) -> str:
    """Whose this token says it is; nodes check that. Raises UsageError when it is no JWT."""
    try:
        part = token.split(".")[1]
        sub = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))["sub"]
    except (ValueError, TypeError, LookupError, RecursionError):
        sub = None
    if not isinstance(sub, str):
        raise UsageError("--token, or YANCHAT_TOKEN, is no JWT with a sub; `yanchat token` mints one.")
    return sub
