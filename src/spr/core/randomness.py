"""Random choices by hash of (seed, purpose, id), so that order, sharding and the number of workers do not matter."""

from __future__ import annotations

from hashlib import blake2b


def stable_hash(seed: int, purpose: str, *ids: str) -> int:
    """A 64-bit number, 0 ≤ n < 2⁶⁴, uniform over ids, and the same on every machine.

    The experiment's seed is 0 ≤ seed < 2⁶³. The purpose, such as ``sample``, keeps different choices for one id
    independent. The ids are the record's and whatever else identifies the choice.

    >>> stable_hash(0, "sample", "1", "23") == stable_hash(0, "sample", "12", "3")
    False
    """
    key = b"\x00".join([purpose.encode(), *(i.encode("utf-8", "surrogatepass") for i in ids)])
    return int.from_bytes(blake2b(key, digest_size=8, salt=seed.to_bytes(8, "little")).digest(), "little")
