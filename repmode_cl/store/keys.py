"""Ed25519 keys that sign models: made, read, and told apart by a fingerprint."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from repmode_cl.errors import RepmodeError
from repmode_cl.utils.extras import require_library

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

__all__ = [
    "fingerprint",
    "make_key",
    "raw_bytes",
    "read_private_key",
    "read_public_key",
    "public_key_of",
    "signed_by",
]

_MOST_BYTES = 1 << 16
_PURPOSE = "signing"


def _require() -> None:
    require_library("cryptography", "sign", _PURPOSE)


def make_key(path: Path) -> Path:
    """Write a new private key, readable by its owner only, and next to it the public key; return the latter's path.

    Raises
    ------
    RepmodeError
        If one of the two files is there already, or `cryptography` is not installed.
    """
    _require()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    public = path.with_name(f"{path.name}.pub")
    for file in (path, public):
        if file.exists():
            raise RepmodeError(f"{file} is there already: a key is never replaced; give another name")
    key = Ed25519PrivateKey.generate()
    private_text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public_text = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    # Made with its rights, so that nobody can read it in between.
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file_:
        file_.write(private_text)
    public.write_bytes(public_text)
    return public


def read_private_key(path: Path, password: Callable[[], str] | None = None) -> Ed25519PrivateKey:
    """Return the private key in a PEM (PKCS#8) or OpenSSH file.

    Parameters
    ----------
    path
        The file.
    password
        Asked for where the key is encrypted.

    Raises
    ------
    RepmodeError
        If it holds no private Ed25519 key, or the password is wrong or missing.
    """
    _require()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    content = _content(path)
    load = (
        serialization.load_ssh_private_key
        if b"BEGIN OPENSSH PRIVATE KEY" in content
        else serialization.load_pem_private_key
    )
    try:
        try:
            key = load(content, None)
        except TypeError as error:  # it is encrypted
            if password is None:
                raise RepmodeError(f"{path} is encrypted: give its password") from error
            key = load(content, password().encode())
    except RepmodeError:
        raise
    except Exception as error:  # the library raises several unrelated classes
        raise RepmodeError(f"{path} holds no private key that can be read ({error})") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise RepmodeError(f"{path} holds a key of another kind: models are signed with Ed25519 keys")
    return key


def read_public_key(path: Path) -> Ed25519PublicKey:
    """Return the public key in a PEM or OpenSSH (``ssh-ed25519 AAAA...``) file.

    Raises
    ------
    RepmodeError
        If it holds none of the kind Ed25519.
    """
    _require()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    content = _content(path)
    if b"PRIVATE KEY" in content:
        raise RepmodeError(
            f"{path} is a private key, which verifies nothing and is given to nobody: give the public key"
        )
    load = (
        serialization.load_ssh_public_key
        if content.startswith(b"ssh-")
        else serialization.load_pem_public_key
    )
    try:
        key = load(content)
    except Exception as error:  # the library raises several unrelated classes
        raise RepmodeError(f"{path} holds no public key that can be read ({error})") from error
    if not isinstance(key, Ed25519PublicKey):
        raise RepmodeError(f"{path} holds a key of another kind: models are signed with Ed25519 keys")
    return key


def public_key_of(raw: bytes) -> Ed25519PublicKey:
    """Return the public key of 32 bytes; ValueError where they are none."""
    _require()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    return Ed25519PublicKey.from_public_bytes(raw)


def signed_by(key: Ed25519PublicKey, signature: bytes, message: bytes) -> bool:
    """Return whether a signature of a message is of this key."""
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(signature, message)
    except InvalidSignature:
        return False
    return True


def raw_bytes(key: Ed25519PublicKey) -> bytes:
    """Return the 32 bytes of a public key."""
    return key.public_bytes_raw()


def fingerprint(raw: bytes) -> str:
    """Return a short name of a public key: ``ed25519:`` and 16 digits of its SHA-256."""
    return f"ed25519:{hashlib.sha256(raw).hexdigest()[:16]}"


def _content(path: Path) -> bytes:
    if not path.is_file():
        raise RepmodeError(f"{path}: there is no such key file")
    if path.stat().st_size > _MOST_BYTES:
        raise RepmodeError(f"{path} is too large for a key")
    return path.read_bytes()
