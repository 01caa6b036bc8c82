# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""TLS: what a connection trusts and shows, and why a broker or we refused.

There is no way to turn the check of the broker's certificate off: a certificate that signs itself
is its own ``tls_ca_file``, and one for another name has its ``tls_server_name``.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

from tavrida import exceptions, masks
from tavrida.config import ConnectionConfig

#: Options that mean nothing without TLS.
_OPTIONS = (
    "tls_ca_file",
    "tls_cert_file",
    "tls_key_file",
    "tls_key_password_file",
    "tls_server_name",
)

#: How OpenSSL says that a certificate is not to be trusted (X509_V_ERR_...), and the remedy.
_REFUSALS = {
    9: "is not valid yet: compare the clocks of both machines",
    10: "has expired: the broker needs a new one",
    **dict.fromkeys(
        (18, 19, 20, 21),
        "is signed by a CA that is not trusted here: name the right one in tls_ca_file",
    ),
    **dict.fromkeys(
        (62, 64),
        "is for another host: use a name in the url that it is for, or name that in "
        "tls_server_name",
    ),
}

#: Words in OpenSSL's errors, most often an alert of the broker's, and what they mean.
_ALERTS = {
    "CERTIFICATE_REQUIRED": "asks for a client certificate: set tls_cert_file and tls_key_file",
    "UNKNOWN_CA": "does not trust the CA of the certificate in tls_cert_file",
    "CERTIFICATE_EXPIRED": "says that the certificate in tls_cert_file has expired",
    "CERTIFICATE_UNKNOWN": "refuses the certificate in tls_cert_file",
    "BAD_CERTIFICATE": "refuses the certificate in tls_cert_file",
    "WRONG_VERSION_NUMBER": "does not speak TLS there: use the port of its TLS listener, which is "
    "5671 by default",
    "PROTOCOL_VERSION": "speaks no TLS 1.2 or newer: turn that on in the broker",
    "UNSUPPORTED_PROTOCOL": "speaks no TLS 1.2 or newer: turn that on in the broker",
    "HANDSHAKE_FAILURE": "found nothing in common with us, or wants a client certificate: set "
    "tls_cert_file and tls_key_file",
}


def check(config: ConnectionConfig) -> None:
    """Raise ConfigError for settings, or files that they name, that can never work."""
    if config.scheme == "amqps":
        if config.login == "certificate" and not config.tls_cert_file:
            raise exceptions.ConfigError(
                "[connection] login = certificate needs the certificate: set tls_cert_file and "
                "tls_key_file"
            )
        context(config)
        return
    for name in _OPTIONS:
        if getattr(config, name):
            raise exceptions.ConfigError(
                f"[connection] {name} has no effect without TLS: write the url as amqps://"
            )
    if config.login == "certificate":
        raise exceptions.ConfigError(
            "[connection] login = certificate needs TLS: write the url as amqps://"
        )


def context(config: ConnectionConfig) -> ssl.SSLContext:
    """Return what a connection trusts and shows, by the files as they are now.

    TLS 1.2 at least; the broker's certificate and the name in it are checked.

    Raises:
        ConfigError: a file is missing or is not what it should be; names it.
    """
    faults = list(_faults_of_paths(config))
    if faults:
        raise exceptions.ConfigError(*faults)
    try:
        made = ssl.create_default_context(cafile=config.tls_ca_file or None)
    except ssl.SSLError:
        raise exceptions.ConfigError(
            f"[connection] tls_ca_file {config.tls_ca_file} holds no certificate in PEM format"
        ) from None
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    if config.tls_cert_file:
        _show(made, config)
    return made


def _faults_of_paths(config: ConnectionConfig) -> Iterator[str]:
    for name in ("tls_ca_file", "tls_cert_file", "tls_key_file", "tls_key_password_file"):
        path = getattr(config, name)
        if not path:
            continue
        try:
            Path(path).read_bytes()
        except OSError as error:
            yield f"[connection] {name} {path} cannot be read: {error.strerror}"
    if config.tls_key_file and not config.tls_cert_file:
        yield "[connection] tls_key_file needs the certificate of that key: set tls_cert_file"


def _show(made: ssl.SSLContext, config: ConnectionConfig) -> None:
    """Load the client certificate and its key."""
    key = config.tls_key_file or config.tls_cert_file
    password = ""
    if config.tls_key_password_file:
        password = Path(config.tls_key_password_file).read_text().rstrip("\r\n")
        masks.learn([password])
    was_asked = False

    def ask() -> str:  # without it OpenSSL asks at the terminal, and waits
        nonlocal was_asked
        was_asked = True
        return password

    try:
        made.load_cert_chain(config.tls_cert_file, config.tls_key_file or None, ask)
    except ssl.SSLError as error:
        if was_asked:
            why = (
                f"the key in {key} is encrypted: put its password into a file and name that in "
                "tls_key_password_file"
                if not password
                else f"the password in {config.tls_key_password_file} does not open the key {key}"
            )
        elif error.reason == "KEY_VALUES_MISMATCH":
            why = f"the key in {key} is not that of the certificate in {config.tls_cert_file}"
        else:
            why = f"{config.tls_cert_file} and {key} should hold a certificate and its key as PEM"
        raise exceptions.ConfigError(f"[connection] tls_cert_file: {why}") from None


def refusal(
    where: str, error: BaseException | str, name: str
) -> exceptions.ConnectionFailed | None:
    """Return why TLS failed, in one sentence; None when it was not TLS.

    ``name`` is that which has to be in the broker's certificate.
    """
    cause = _cause_of(error)
    if isinstance(cause, ssl.SSLCertVerificationError):
        why = _REFUSALS.get(cause.verify_code, f"is not valid: {cause.verify_message}")
        return exceptions.ConnectionFailed(
            f"the certificate of {where}, asked for as {name!r}, {why}", is_final=True
        )
    text = repr(error)
    if cause is None and "SSL" not in text:
        return None
    for word, why in _ALERTS.items():
        if word in text:
            return exceptions.ConnectionFailed(f"{where} {why}", is_final=True)
    if cause is not None:
        return exceptions.ConnectionFailed(f"TLS with {where} failed: {cause}")
    return None


def _cause_of(error: BaseException | str | None) -> ssl.SSLError | None:
    """Return the error of TLS inside one of pika's, which keep others in attributes."""
    if isinstance(error, ssl.SSLError):
        return error
    inside = (*getattr(error, "exceptions", ()), getattr(error, "exception", None))
    for inner in (*inside, *getattr(error, "args", ())):
        found = _cause_of(inner) if isinstance(inner, BaseException) else None
        if found is not None:
            return found
    return None
