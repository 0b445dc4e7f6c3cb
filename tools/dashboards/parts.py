# SPDX-License-Identifier: Apache-2.0
"""Panels, variables and links as Grafana's schema has them. Knows no metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Json = dict[str, Any]

# Told apart by lightness too, so that they differ for eyes that do not tell red from green.
GREEN, YELLOW, RED, BLUE, GREY, PURPLE = "#56A64B", "#F2CC0C", "#C4162A", "#5794F2", "#8E8E8E", "#8F3BB8"
ORANGE = "#FF780A"
WIDTH = 24

PROMETHEUS: Json = {"type": "prometheus", "uid": "${datasource}"}
LOKI: Json = {"type": "loki", "uid": "${loki}"}


def query(
    expr: str, legend: str = "", *, instant: bool = False, form: str = "time_series", ref: str = "A"
) -> Json:
    """One PromQL query."""
    return {
        "refId": ref,
        "datasource": PROMETHEUS,
        "editorMode": "code",
        "expr": expr,
        "legendFormat": legend or "__auto",
        "instant": instant,
        "range": not instant,
        "format": form,
        "exemplar": not instant and form != "table",
    }


def steps(*pairs: tuple[float | None, str]) -> Json:
    """Thresholds: each colour from its value on."""
    return {"mode": "absolute", "steps": [{"value": value, "color": colour} for value, colour in pairs]}


def by_name(name: str, *properties: tuple[str, Any]) -> Json:
    """An override of the fields of one name."""
    return _override("byName", name, properties)


def by_pattern(pattern: str, *properties: tuple[str, Any]) -> Json:
    """An override of the fields whose name matches."""
    return _override("byRegexp", pattern, properties)


def _override(matcher: str, options: str, properties: Sequence[tuple[str, Any]]) -> Json:
    return {
        "matcher": {"id": matcher, "options": options},
        "properties": [{"id": key, "value": value} for key, value in properties],
    }


def fixed(colour: str) -> tuple[str, Json]:
    """A colour for an override."""
    return "color", {"mode": "fixed", "fixedColor": colour}


def link(title: str, url: str) -> Json:
    """A link on the values of a field."""
    return {"title": title, "url": url, "targetBlank": False}


def panel(
    kind: str,
    title: str,
    targets: list[Json],
    *,
    size: tuple[int, int],
    description: str,
    unit: str = "short",
    thresholds: Json | None = None,
    options: Json | None = None,
    custom: Json | None = None,
    overrides: list[Json] | None = None,
    links: list[Json] | None = None,
    mappings: list[Json] | None = None,
    transformations: list[Json] | None = None,
    colour: str = "palette-classic",
    decimals: int | None = None,
    bounds: tuple[float, float] | None = None,
    datasource: Json | None = None,
) -> Json:
    """A panel; ``arrange`` gives it its number and place."""
    defaults: Json = {
        "unit": unit,
        "color": {"mode": "thresholds" if thresholds and kind != "timeseries" else colour},
        "thresholds": thresholds or steps((None, GREEN)),
        "mappings": mappings or [],
        "links": links or [],
        "custom": custom or {},
    }
    if decimals is not None:
        defaults["decimals"] = decimals
    if bounds is not None:
        defaults |= {"min": bounds[0], "max": bounds[1]}
    width, height = size
    return {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": datasource or PROMETHEUS,
        "gridPos": {"w": width, "h": height, "x": 0, "y": 0},
        "targets": targets,
        "fieldConfig": {"defaults": defaults, "overrides": overrides or []},
        "options": options or {},
        "transformations": transformations or [],
    }


def stat(
    title: str, target: Json, *, size: tuple[int, int] = (4, 4), text: str = "value", **more: Any
) -> Json:
    """One number, or the name of one series."""
    options = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "background_solid" if text == "value" else "none",
        "graphMode": "none",
        "textMode": text,
        "justifyMode": "center",
        "orientation": "auto",
    }
    return panel("stat", title, [target], size=size, options=options, **more)


def bars(title: str, target: Json, *, size: tuple[int, int] = (8, 7), **more: Any) -> Json:
    """A bar for each series, as it is now."""
    options = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "displayMode": "basic",
        "orientation": "horizontal",
        "showUnfilled": True,
        "valueMode": "text",
    }
    return panel("bargauge", title, [target], size=size, options=options, **more)


def lines(
    title: str, targets: list[Json], *, size: tuple[int, int] = (12, 8), stacked: bool = False, **more: Any
) -> Json:
    """Series over time; stacked ones as bars."""
    custom: Json = {
        "drawStyle": "bars" if stacked else "line",
        "fillOpacity": 80 if stacked else 10,
        "lineWidth": 1,
        "showPoints": "never",
        "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
    }
    options = {
        "legend": {
            "displayMode": "table",
            "placement": "right",
            "showLegend": True,
            "calcs": ["max", "lastNotNull"],
        },
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    if stacked:
        custom["axisSoftMin"] = 0
    return panel("timeseries", title, targets, size=size, custom=custom, options=options, **more)


def heat(title: str, expr: str, *, size: tuple[int, int] = (8, 8), **more: Any) -> Json:
    """A histogram over time."""
    options = {
        "calculate": False,
        "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64, "exponent": 0.5, "fill": "dark-orange"},
        "yAxis": {"unit": "s", "axisPlacement": "left"},
        "rowsFrame": {"layout": "le"},
        "cellGap": 1,
        "exemplars": {"color": "rgba(31,120,193,0.9)"},
        "tooltip": {"mode": "single", "yHistogram": True, "showColorScale": False},
        "legend": {"show": True},
        "showValue": "never",
        "filterValues": {"le": 1e-9},
    }
    return panel(
        "heatmap", title, [query(expr, "{{le}}", form="heatmap")], size=size, options=options, **more
    )


def column(name: str, width: int, *properties: tuple[str, Any]) -> Json:
    """An override that makes a column of a table so wide, in pixels."""
    return by_name(name, ("custom.width", width), *properties)


SEVERITY = column(
    "Severity",
    90,
    ("custom.cellOptions", {"type": "color-background"}),
    (
        "mappings",
        [
            {
                "type": "value",
                "options": {
                    "critical": {"text": "critical", "color": RED, "index": 0},
                    "warning": {"text": "warning", "color": ORANGE, "index": 1},
                    "info": {"text": "info", "color": BLUE, "index": 2},
                },
            }
        ],
    ),
)


def table(
    title: str, target: Json, columns: dict[str, str], *, size: tuple[int, int] = (12, 8), **more: Any
) -> Json:
    """The labels and the value of each series, in this order and under these names."""
    order = {name: index for index, name in enumerate(columns)}
    organize = {"renameByName": columns, "indexByName": order, "excludeByName": {"Time": True}}
    return panel(
        "table",
        title,
        [target | {"format": "table"}],
        size=size,
        options={
            "showHeader": True,
            "cellHeight": "sm",
            "sortBy": [{"displayName": columns.get("Value", ""), "desc": True}],
        },
        transformations=[
            {"id": "filterFieldsByName", "options": {"include": {"names": list(columns)}}},
            {"id": "organize", "options": organize},
        ],
        **more,
    )


def datasource_variable(name: str, kind: str, label: str) -> Json:
    """Picks a data source."""
    return {
        "type": "datasource",
        "name": name,
        "label": label,
        "query": kind,
        "hide": 0,
        "options": [],
        "multi": False,
        "includeAll": False,
        "regex": "",
        "refresh": 1,
    }


def label_variable(name: str, label: str, expr: str, *, several: bool) -> Json:
    """Picks values of a label."""
    variable: Json = {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": PROMETHEUS,
        "query": {"query": expr, "refId": "values", "qryType": 1},
        "refresh": 2,
        "sort": 1,
        "multi": several,
        "includeAll": several,
        "options": [],
        "hide": 0,
        "regex": "",
    }
    if several:
        variable |= {"allValue": ".*", "current": {"text": "All", "value": "$__all"}}
    return variable


def text_variable(name: str, label: str, value: str) -> Json:
    """Holds what its reader may change."""
    current = {"text": value, "value": value}
    return {
        "type": "textbox",
        "name": name,
        "label": label,
        "query": value,
        "current": current,
        "options": [current | {"selected": True}],
        "hide": 0,
    }


def dashboard(
    uid: str,
    title: str,
    description: str,
    *,
    variables: list[Json],
    links: list[Json],
    rows: list[list[Json]],
) -> Json:
    """The whole; each row of panels is as high as its highest."""
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["kmodgate"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": variables},
        "annotations": {"list": []},
        "links": links,
        "panels": arrange(rows),
    }


def arrange(rows: list[list[Json]]) -> list[Json]:
    """Number the panels and place them, row below row. ValueError for a row that is too wide."""
    placed: list[Json] = []
    y = 0
    for row in rows:
        x = 0
        for item in row:
            place = item["gridPos"]
            placed.append(item | {"id": len(placed) + 1, "gridPos": place | {"x": x, "y": y}})
            x += place["w"]
        if x > WIDTH:
            raise ValueError(f"the row of {row[0]['title']!r} is {x} wide")
        y += max(item["gridPos"]["h"] for item in row)
    return placed


def dashboard_link(title: str, url: str) -> Json:
    """A link in the head of a dashboard."""
    return {
        "type": "link",
        "title": title,
        "url": url,
        "icon": "external link",
        "tooltip": "",
        "tags": [],
        "asDropdown": False,
        "includeVars": False,
        "keepTime": True,
        "targetBlank": False,
    }
