"""Sections to HTML: escaped, finite, the same every time, under a policy."""

import base64
import hashlib
import json
import re

import pytest

from training.report.page import cell, number_columns, page, policy
from training.report.parts import Facts, Figure, Section, Table, Words

HOSTILE = "</script><b onclick='x()'>&amp;"


def charts_of(html):
    return json.loads(
        re.search(r'<script type="application/json" id="charts">(.*?)</script>', html, re.DOTALL)[1]
    )


@pytest.fixture(scope="module")
def html():
    table = Table(HOSTILE, [HOSTILE, "n"], [(HOSTILE, 1), ("b", None)])
    chart = {"data": {"values": [{"a": HOSTILE, "b": float("nan")}]}, "mark": "bar"}
    parts = [Facts({HOSTILE: HOSTILE}), Words([HOSTILE]), Figure(HOSTILE, HOSTILE, chart, table), table]
    return page(HOSTILE, [Section("one", HOSTILE, parts)])


def test_nothing_of_the_data_is_markup(html):
    assert "</script><b" not in html
    assert "<b " not in html
    assert html.count("</script>") == 3  # the charts, the library, the page's own
    assert "&lt;/script&gt;&lt;b onclick=&#39;x()&#39;&gt;&amp;amp;" in html


def test_charts_have_their_data_with_nulls_for_what_is_no_number(html):
    assert charts_of(html)["charts"] == {
        "one-3": {"data": {"values": [{"a": HOSTILE, "b": None}]}, "mark": "bar"}
    }
    assert 'id="one-3"' in html


def test_the_policy_allows_the_scripts_of_the_page_by_their_digests_and_no_other(html):
    told = re.search(r'http-equiv="Content-Security-Policy" content="(.*?)"', html)[1].replace("&#39;", "'")
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert len(scripts) == 2
    assert told == policy(scripts)
    assert f"script-src 'sha256-{digests[0]}' 'sha256-{digests[1]}'" in told
    assert told.startswith("default-src 'none'; ")


def test_no_address_is_in_the_page_but_those_that_name_a_format(html):
    """Namespaces and the names of schemas are no addresses that anybody visits."""
    outside = re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)
    assert re.findall(r"(?:src|href)=[\"']?(?!#)[^\"' >]+", outside) == []
    assert "url(" not in outside


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, ""),
        (1234567, "1,234,567"),
        (0.123456, "0.1235"),
        (12345.678, "12,345.7"),
        (True, "true"),
        ("x", "x"),
        (-2.5, "-2.5"),
    ],
)
def test_cells_are_written_for_people(value, told):
    assert cell(value) == told


def test_columns_of_numbers_are_found():
    rows = [("a", 1, "12.5%", None, "1,234", "0.5"), ("b", None, "", None, "7", "x")]
    assert number_columns(Table("", list("abcdef"), rows)) == {1, 2, 4}
    assert number_columns(Table("", ["a"], [])) == set()
