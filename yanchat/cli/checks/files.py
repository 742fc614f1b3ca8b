"""Files that the settings name, and those of the nodes here: are they there, who may read them, when do they expire?"""

from __future__ import annotations

import datetime
import os
import pwd
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from yanchat.cli.checks import Finding, failure, ok, warning
from yanchat.errors import ConfigError

if TYPE_CHECKING:
    from yanchat.config import Settings

SOON: Final = datetime.timedelta(days=14)
SECRETS: Final = (
    ("auth", "key_file"),
    ("auth", "jwks_file"),
    ("tls", "key_file"),
    ("admin", "token_file"),
    ("redis", "password_file"),
    ("redis", "sentinel_password_file"),
    ("redis", "key_file"),
)
CERTIFICATES: Final = (("tls", "cert_file"), ("redis", "cert_file"), ("redis", "ca_file"))
_STATE = "permissions.state"
_SECRETS = "permissions.secrets"


def look_at_files(settings: Settings, state: Path) -> list[Finding]:
    """All of them."""
    return [state_files(state), *secrets(settings), *certificates(settings)]


# -- secrets -----------------------------------------------------------------------------------------------------------
def secrets(settings: Settings) -> list[Finding]:
    """Whether others may read what only a node may, and whether the node may."""
    named = [(f"{section}.{key}", getattr(getattr(settings, section), key)) for section, key in SECRETS]
    files = [(name, file) for name, file in named if file and not (name.startswith("auth") and _is_public(file))]
    found = [finding for name, file in files if (finding := _secret(name, Path(file))) is not None]
    if not found and files:
        return [ok(_SECRETS, f"only who may read {' and '.join(name for name, _ in files)} can")]
    return found


def _secret(name: str, file: Path) -> Finding | None:
    try:
        mode = file.stat().st_mode
        with file.open("rb"):
            pass
    except OSError as error:
        return failure(
            _SECRETS,
            f"{name}: {file} cannot be read: {error.strerror}",
            f"put it there, or let the user that runs the node read it, or change {name}",
        )
    if mode & stat.S_IRWXO:
        return failure(_SECRETS, f"{name}: {file} may be used by everybody on this machine", f"chmod o= {file}")
    return None


def _is_public(file: str) -> bool:
    """Whether there is no secret in it: a public key, a certificate, or a set of public keys."""
    try:
        data = Path(file).read_bytes()
    except OSError:
        return False
    return b"-----BEGIN" in data or (b'"keys"' in data and b'"oct"' not in data)


# -- certificates ------------------------------------------------------------------------------------------------------
def certificates(settings: Settings) -> list[Finding]:
    """When they expire, and whether ours fits its key."""
    found = []
    for section, key in CERTIFICATES:
        file = getattr(getattr(settings, section), key)
        if file:
            found.append(_certificate(f"certificate.{section}", f"{section}.{key}: {file}", Path(file)))
    if settings.tls.cert_file:
        from yanchat.gateway.tls import open_tls

        try:
            open_tls(settings.tls)
        except (ConfigError, OSError) as error:
            found.append(failure("certificate.tls", str(error), "put the right files there, or change [tls]"))
    return found


def _certificate(check: str, where: str, file: Path) -> Finding:
    from cryptography import x509

    try:
        expires = [one.not_valid_after_utc for one in x509.load_pem_x509_certificates(file.read_bytes())]
    except OSError as error:
        return failure(check, f"{where} cannot be read: {error.strerror}", "put the certificate there (PEM)")
    except ValueError:
        return failure(check, f"{where} holds no certificate", "put one there in PEM form, with its chain")
    return expiry(check, where, min(expires))


def expiry(check: str, what: str, until: datetime.datetime) -> Finding:
    """How long something holds."""
    left = until - datetime.datetime.now(datetime.UTC)
    day = until.strftime("%Y-%m-%d %H:%M UTC")
    if left < datetime.timedelta():
        return failure(check, f"{what} has expired on {day}", "renew it; a node takes the new file at once")
    if left < SOON:
        return warning(check, f"{what} expires on {day}", "renew it; a node takes the new file at once")
    return ok(check, f"{what} holds until {day}")


# -- state -------------------------------------------------------------------------------------------------------------
def state_files(state: Path) -> Finding:
    """Whether messages and admin sockets are their owner's alone, and his who runs the nodes."""
    if not state.exists():
        return ok(_STATE, f"{state} is not there yet; the first node makes it")
    try:
        paths = list(_of_nodes(state))
    except PermissionError as error:
        return failure(_STATE, f"{error.filename} may not be looked into", "call this as the user that runs the nodes")
    if exposed := _exposed(state, paths):
        return exposed
    owners = {path.lstat().st_uid for path in paths}
    if len(owners) > 1:
        names = sorted(map(_user, owners))
        return failure(
            _STATE,
            f"files under {state} belong to {' and '.join(names)}",
            f"chown -R them to the one user that runs the nodes: chown -R USER: {state}",
        )
    mine = os.geteuid() in owners or not owners or os.geteuid() == 0
    if not (mine and os.access(state, os.R_OK | os.W_OK | os.X_OK)):
        owner = f", {_user(owners.pop())}" if owners else ""
        return failure(_STATE, f"{state} may not be written", f"call this as the user that runs the nodes{owner}")
    return ok(_STATE, f"{state} is its owner's alone")


def _exposed(state: Path, paths: Iterable[Path]) -> Finding | None:
    """What others may use, or replace; that they may read the names of nodes does no harm."""
    open_to_others = [path for path in paths if stat.S_IMODE(path.lstat().st_mode) & 0o077]
    if open_to_others:
        return failure(
            _STATE,
            f"others may use {_some(open_to_others)}, where messages are",
            f"chmod -R go= {' '.join(str(path) for path in (state / 'nodes', state / 'cluster.db') if path.exists())}",
        )
    writable = [path for path in (state, state / "nodes") if path.exists() and path.stat().st_mode & 0o022]
    if writable:
        fix = f"chmod go-w {' '.join(map(str, writable))}"
        return failure(_STATE, f"others may put files of their own into {_some(writable)}", fix)
    return None


def _of_nodes(state: Path) -> Iterator[Path]:
    yield from state.glob("cluster.db*")
    for directory, _, files in os.walk(state / "nodes", onerror=_raise):
        if directory != str(state / "nodes"):
            yield Path(directory)
        yield from (Path(directory, name) for name in files)


def _raise(error: OSError) -> None:
    if isinstance(error, PermissionError):
        raise error


def _some(paths: Iterable[Path]) -> str:
    first, *others = map(str, paths)
    return first + (f" and {len(others)} more" if others else "")


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
