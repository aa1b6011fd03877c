"""The certificate authorities that this host trusts, for requests of our own."""

import os
import ssl
from collections.abc import Mapping

import certifi


def trust(environ: Mapping[str, str]) -> ssl.SSLContext:
    """Load trusted CAs: SSL_CERT_FILE and SSL_CERT_DIR, else REQUESTS_CA_BUNDLE, else the system's and certifi's."""
    # OpenSSL reads the first two by itself.
    if environ.get("SSL_CERT_FILE") or environ.get("SSL_CERT_DIR"):
        return ssl.create_default_context()
    if bundle := environ.get("REQUESTS_CA_BUNDLE"):
        is_folder = os.path.isdir(bundle)
        return ssl.create_default_context(cafile=None if is_folder else bundle, capath=bundle if is_folder else None)
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context
