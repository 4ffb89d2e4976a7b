"""Structured records: JSON lines, CSV tables and log lines that agree with themselves.

Within a document identifiers and times only grow; a total is quantity times price.
"""

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from random import Random

NAMES = (
    "Ada Alan Barbara Carl Dana Edsger Emmy Frances Grace Hedy Ivan Joan Karen Leslie Margaret "
    "Niklaus Olga Peter Radia Sofia Tim Ursula Vera Wendy"
)
CITIES = ("Berlin", "Lima", "Nairobi", "Oslo", "Osaka", "Paris", "Quito", "Sevilla", "Turin")
PRODUCTS = ("bolt", "cable", "drill", "filter", "hinge", "lamp", "pump", "sensor", "valve", "wheel")
SERVICES = ("auth", "billing", "cache", "gateway", "mailer", "search", "storage")
EVENTS = {
    "INFO": ("started", "request served", "job finished", "connection opened"),
    "WARNING": ("slow response", "retrying", "cache miss", "queue is long"),
    "ERROR": ("timeout", "connection refused", "disk full", "bad checksum"),
}


def document(rng: Random, keep: Callable[[str], bool]) -> str:
    """One document of 4 to 10 records of one kind; only records for which `keep` is true."""
    header, draw = rng.choice(((None, order_json), (CSV_HEADER, order_csv), (None, log_line)))
    identifier = rng.randrange(1000, 90000)
    time = datetime(2024, 1, 1) + timedelta(seconds=rng.randrange(2 * 365 * 86400))
    lines = [] if header is None else [header]
    for _ in range(rng.randint(4, 10)):
        identifier += rng.randint(1, 9)
        time += timedelta(seconds=rng.randint(1, 900))
        line = draw(rng, identifier, time)
        while not keep(line):
            line = draw(rng, identifier, time)
        lines.append(line)
    return "\n".join(lines) + "\n"


def _order(rng: Random, identifier: int, time: datetime) -> dict:
    quantity, price = rng.randint(1, 20), rng.randint(1, 99)
    return {
        "id": identifier,
        "date": time.date().isoformat(),
        "customer": rng.choice(NAMES.split()),
        "city": rng.choice(CITIES),
        "item": rng.choice(PRODUCTS),
        "quantity": quantity,
        "price": price,
        "total": quantity * price,
    }


CSV_HEADER = "id,date,customer,city,item,quantity,price,total"


def order_json(rng: Random, identifier: int, time: datetime) -> str:
    """An order as one JSON object."""
    return json.dumps(_order(rng, identifier, time))


def order_csv(rng: Random, identifier: int, time: datetime) -> str:
    """An order as a row under `CSV_HEADER`."""
    return ",".join(str(value) for value in _order(rng, identifier, time).values())


def log_line(rng: Random, identifier: int, time: datetime) -> str:
    """A line of a server's log."""
    level = rng.choices(list(EVENTS), weights=(6, 2, 1))[0]
    event, milliseconds = rng.choice(EVENTS[level]), rng.randint(1, 3000)
    return (
        f"{time.isoformat(sep=' ')} {level} {rng.choice(SERVICES)}[{identifier}]: {event} "
        f"host=10.0.{rng.randrange(8)}.{rng.randrange(256)} ms={milliseconds}"
    )
