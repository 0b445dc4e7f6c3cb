# SPDX-License-Identifier: Apache-2.0
"""The C contract against its Python mirrors, by the type information of the compiled object."""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
from enum import IntEnum
from pathlib import Path
from typing import Any

import pytest

from kmodgate import policy
from kmodgate.hooks import abi
from kmodgate.model import Api, By, Origin, Reason, Stage, Verdict, Verification

pytestmark = pytest.mark.bpf

Types = dict[int, dict[str, Any]]

STRUCTS = {
    "kmg_decision": abi.Decision,
    "kmg_control": abi.Control,
    "kmg_question": abi.Question,
    "kmg_answer": abi.Answer,
    "kmg_file": abi.File,
    "kmg_event": abi.Event,
    "kmg_introduction": abi.Introduction,
    "kmg_pin": abi.Pin,
}

ENUMS: dict[str, tuple[str, type[IntEnum]]] = {
    "kmg_api": ("KMG_API_", Api),
    "kmg_origin": ("KMG_ORIGIN_", Origin),
    "kmg_stage": ("KMG_STAGE_", Stage),
    "kmg_verdict": ("KMG_VERDICT_", Verdict),
    "kmg_by": ("KMG_BY_", By),
    "kmg_reason": ("KMG_REASON_", Reason),
    "kmg_verification": ("KMG_VERIFICATION_", Verification),
    "kmg_stat": ("KMG_STAT_", abi.Stat),
    "kmg_histogram": ("KMG_HISTOGRAM_", abi.Histogram),
}

HEADER = Path(__file__).parents[2] / "bpf/kmodgate.h"


@pytest.fixture(scope="module")
def types(agent_object: Path) -> Types:
    done = subprocess.run(
        ["bpftool", "-j", "btf", "dump", "file", agent_object], check=True, capture_output=True
    )
    return {entry["id"]: entry for entry in json.loads(done.stdout)["types"]}


def named(types: Types, kind: str, name: str) -> dict[str, Any]:
    (found,) = [t for t in types.values() if t["kind"] == kind and t["name"] == name]
    return found


@pytest.mark.parametrize("name", STRUCTS)
def test_every_member_lies_where_the_mirror_says(types: Types, name: str) -> None:
    struct, mirror = named(types, "STRUCT", name), STRUCTS[name]
    assert struct["size"] == ctypes.sizeof(mirror)
    in_c = {member["name"]: member["bits_offset"] // 8 for member in struct["members"]}
    in_python = {field[0]: getattr(mirror, field[0]).offset for field in mirror._fields_}
    assert in_python == in_c
    # Members lie end to end, so equal offsets and equal totals mean equal sizes.
    sizes = [getattr(mirror, field[0]).size for field in mirror._fields_]
    assert sum(sizes) == struct["size"]


def enumerators(prefix: str) -> dict[str, int]:
    """From the header: enums that no variable has as its type do not reach the object."""
    text = HEADER.read_text()
    found: dict[str, int] = {}
    for body in re.findall(r"enum \w+ \{(.*?)\n\};", text, re.DOTALL):
        next_value = 0
        for name, value in re.findall(r"^\t(KMG_\w+)(?: = (\d+))?,", body, re.MULTILINE):
            next_value = int(value) if value else next_value
            found[name] = next_value
            next_value += 1
    return {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}


@pytest.mark.parametrize("name", ENUMS)
def test_every_enumerator_has_its_twin(name: str) -> None:
    prefix, twin = ENUMS[name]
    in_c = {key: value for key, value in enumerators(prefix).items() if key != "COUNT"}
    assert in_c == {member.name: member.value for member in twin}


def test_enumerators_in_the_object_are_those_of_the_header(types: Types) -> None:
    checked = 0
    for entry in types.values():
        if entry["kind"] == "ENUM" and entry["name"] in ENUMS:
            prefix = ENUMS[entry["name"]][0]
            in_object = {value["name"].removeprefix(prefix): value["val"] for value in entry["values"]}
            assert in_object == enumerators(prefix)
            checked += 1
    assert checked == len(ENUMS)


def macros() -> dict[str, int]:
    """Every plain number that the header defines."""
    source = "\n".join(
        f"{name}={name}" for name in re.findall(r"^#define (KMG_\w+) ", HEADER.read_text(), re.MULTILINE)
    )
    done = subprocess.run(
        ["clang", "-E", "-P", "-include", HEADER, "-"],
        input=re.sub(r"^(\w+)=", r"@\1@ = ", source, flags=re.MULTILINE).replace("@", '"'),
        check=True,
        capture_output=True,
        text=True,
    )
    counts = {
        f"{prefix}COUNT": enumerators(prefix)["COUNT"]
        for prefix, _ in ENUMS.values()
        if "COUNT" in enumerators(prefix)
    }
    values = {}
    for name, text in re.findall(r'^"(\w+)" = (.+)$', done.stdout, re.MULTILINE):
        for count, number in counts.items():
            text = text.replace(count, str(number))  # noqa: PLW2901
        assert re.fullmatch(r"[0-9+*() ]+", text), (name, text)
        values[name] = eval(text)  # noqa: S307  # digits and operators only, checked above
    return values


def test_sizes_of_the_maps_agree() -> None:
    assert macros() | {} == {
        "KMG_ABI": abi.ABI,
        "KMG_PATH_LEN": abi.PATH_LEN,
        "KMG_NAME_LEN": abi.NAME_LEN,
        "KMG_COMM_LEN": abi.COMM_LEN,
        "KMG_FSTYPE_LEN": abi.FSTYPE_LEN,
        "KMG_DIGEST_LEN": abi.DIGEST_LEN,
        "KMG_PINS": abi.PINS,
        "KMG_HISTOGRAM_BUCKETS": abi.HISTOGRAM_BUCKETS,
        "KMG_HISTOGRAM_ROW": abi.HISTOGRAM_ROW,
        "KMG_REASON_SLOTS": abi.REASON_SLOTS,
        "KMG_BY_SLOTS": abi.BY_SLOTS,
        "KMG_COUNTERS": abi.COUNTERS,
        "KMG_VERIFICATION_SLOTS": policy.VERIFICATION_SLOTS,
        "KMG_TABLE_SIZE": policy.TABLE_SIZE,
        "KMG_TABLE_COPIES": abi.TABLE_COPIES,
    }


def test_every_reason_has_room() -> None:
    assert max(Reason) < abi.REASON_SLOTS
    assert max(By) < abi.BY_SLOTS
    assert max(Verification) < policy.VERIFICATION_SLOTS
