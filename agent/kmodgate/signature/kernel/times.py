# SPDX-License-Identifier: Apache-2.0
"""Dates as ``x509_decode_time()`` reads them: the form alone, never against the clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from .answer import Refusal

UTC_TIME, GENERALIZED_TIME = 0x17, 0x18
_PIVOT, _FIRST_YEAR = 50, 1970
_HOURS, _MINUTES, _SECONDS = 24, 59, 60


def check_time(tag: int, contents: bytes) -> datetime:
    """Read UTCTime or GeneralizedTime (RFC 5280 section 4.1.2.5).

    An hour of 24 and a second of 60 pass, as ISO 8601 has them.

    Raises:
        Refusal: EBADMSG.
    """
    digits = {UTC_TIME: 12, GENERALIZED_TIME: 14}.get(tag)
    text = contents[:-1]
    if digits is None or len(text) != digits or contents[-1:] != b"Z" or not text.isdigit():
        raise Refusal("EBADMSG", "a date does not decode")
    year = int(text[:-10])
    if tag == UTC_TIME:
        year += 1900 if year >= _PIVOT else 2000
    elif 1900 + _PIVOT <= year < 2000 + _PIVOT:
        raise Refusal("EBADMSG", "a date before 2050 stands as GeneralizedTime")
    month, day, hour, minute, second = (int(text[at : at + 2]) for at in range(digits - 10, digits, 2))
    try:
        date = datetime(year, month, day, tzinfo=UTC)
    except ValueError as error:
        raise Refusal("EBADMSG", "a date that does not exist") from error
    if year < _FIRST_YEAR or hour > _HOURS or minute > _MINUTES or second > _SECONDS:
        raise Refusal("EBADMSG", "a date that does not exist")
    try:
        return date + timedelta(hours=hour, minutes=minute, seconds=second)
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC)
