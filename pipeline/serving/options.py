"""The options of a serving job."""

from dataclasses import dataclass, field
from typing import Any

from .access import OPEN_ACCESS, Access
from .limits import DEFAULT_LIMITS, Limits

APPLICATION = "previews"  # its name on Ray Serve
# A second thread hardly speeds up a preview. A second process nearly doubles the throughput, but
# each takes a quarter of a gigabyte.
MOST_CPU_REPLICAS = 4


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """See ``strata serve --help``. ``limits`` apply to each replica.

    ``input_options`` are the archive's storage options; they may hold secrets.
    """

    dataset: str
    host: str = "127.0.0.1"
    port: int = 8000
    replicas: int | None = None
    cpus_per_replica: int | None = None
    device: str = "auto"
    decoder: str | None = None
    address: str | None = None
    limits: Limits = DEFAULT_LIMITS
    access: Access = OPEN_ACCESS
    input_options: dict[str, Any] = field(default_factory=dict, repr=False)
