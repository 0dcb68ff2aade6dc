"""The service's Python client, synchronous and asynchronous: on the standard library alone, cheap to import.

What can be asked is said once (`calls`), and travels one way (`transport`); `Client` and `AsyncClient` only differ in
who waits. The command line uses them, and the runtime hook (`autotune.sources`) the same calls over the same way.
"""

from __future__ import annotations

from autotune.client.async_client import AsyncClient
from autotune.client.client import Client
from autotune.client.errors import ServiceError, ServiceUnreachableError

__all__ = ["AsyncClient", "Client", "ServiceError", "ServiceUnreachableError"]
