"""The certificate that both transports show, where there is one."""

import ssl
from dataclasses import dataclass
from pathlib import Path

from service.errors import StartupError


@dataclass(frozen=True)
class Identity:
    """Files of a certificate, its chain after it, and of its private key; both PEM."""

    certificate: Path
    private_key: Path

    def read(self) -> tuple[bytes, bytes]:
        """Return the contents: the private key, then the certificates."""
        return self.private_key.read_bytes(), self.certificate.read_bytes()


def find_identity(certificate: Path | None, private_key: Path | None) -> Identity | None:
    """Return the identity of two settings, or None where neither is set.

    Raises StartupError where one is missing, can't be read, or does not belong to the other.
    """
    if certificate is None and private_key is None:
        return None
    if certificate is None or private_key is None:
        missing = "CERTIFICATE" if certificate is None else "PRIVATE_KEY"
        raise StartupError(f"TLS needs two files; set GENSERVE_TLS_{missing} too")
    for name, path in (("CERTIFICATE", certificate), ("PRIVATE_KEY", private_key)):
        try:
            path.read_bytes()
        except OSError as error:
            raise StartupError(
                f"GENSERVE_TLS_{name} {path} can't be read: {error.strerror}"
            ) from error
    try:
        # Without a password OpenSSL would ask for it on the terminal, and wait.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, private_key, str)
    except (ssl.SSLError, ValueError) as error:
        raise StartupError(
            f"GENSERVE_TLS_CERTIFICATE {certificate} and GENSERVE_TLS_PRIVATE_KEY {private_key} "
            "are no PEM certificate with its unencrypted PEM key"
        ) from error
    return Identity(certificate, private_key)
