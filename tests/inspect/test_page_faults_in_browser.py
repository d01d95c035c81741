"""Kinds of faults that readers found in the page: evidence out of sight, cut tables, small targets, numbers in two styles."""

from __future__ import annotations

import copy

import pytest

from jaxgpt.inspect import findings, page, static_tables
from tests.inspect.test_page_in_browser import draw_all

ONES = (
    r"(^|[^\d.,])1 (tokens|layers|heads|neurons|models|rows|windows|texts|steps|pairs|questions|positions)\b"
)


@pytest.fixture(scope="module")
def pages(report_payload, tmp_path_factory):
    """The small run's page; with a finding of every kind; and with one of everything."""
    folder = tmp_path_factory.mktemp("faults")
    (folder / "report.html").write_text(page.render(report_payload), "utf-8")
    figures = copy.deepcopy(report_payload)
    found = figures["attention"]["statistics"]
    for name in ("previous_token", "induction"):
        found[name]["value"][-1][0] = 0.9
    figures["attention"]["ablation"]["mean"]["difference"][0][-1] = 2.0
    names = static_tables.Words(figures)
    quoted = type("Names", (), {"text": lambda _, i: repr(names(i)), "count": lambda _, i: 1000})()
    figures["summary"]["findings"] = [
        one for kind in findings.KINDS for one in list(kind(figures, quoted))[:1]
    ]
    (folder / "findings.html").write_text(page.render(figures), "utf-8")
    ones = copy.deepcopy(report_payload)
    ones["summary"]["model"] |= {"num_layers": 1, "num_heads": 1, "context_length": 1}
    ones["summary"] |= {"train_tokens": 1, "vocab_size": 1}
    ones["attention"]["untrained_models"] = 1
    ones["neurons"] |= {"tokens": 1}
    for layer in ones["neurons"]["layers"]:
        layer |= {"width": 1, "dead": 1}
    ones["embeddings"]["drift"] and ones["embeddings"]["drift"].update(still=1, followed=1)
    (folder / "ones.html").write_text(page.render(ones), "utf-8")
    return folder


def test_a_finding_leads_to_its_evidence(chromium, pages, report_payload):
    """After a click the number of each finding is in the window, whatever else is drawn above it."""
    chromium.open(pages / "findings.html")
    links = chromium.run("return document.querySelectorAll('a[data-finding]').length")
    assert links >= 4
    for i in range(links):
        chromium.run("scrollTo(0, 0)")
        text = chromium.run(
            "const link = document.querySelectorAll('a[data-finding]')[arguments[0]]; link.click(); return link.parentNode.textContent",
            i,
        )
        chromium.wait(
            "const id = decodeURIComponent(location.hash.slice(1).split('&')[0]); const node = document.getElementById(id);"
            "const box = node.getBoundingClientRect(); return box.bottom > 0 && box.top >= -1 && box.top < innerHeight * 0.8"
        )
        seen = chromium.run(
            "return [...document.querySelectorAll('main *')].filter((n) => { const b = n.getBoundingClientRect();"
            " return !n.children.length && b.height && b.top < innerHeight && b.bottom > 0 && !n.closest('.findings'); }).map((n) => n.textContent).join(' ')"
        )
        numbers = [word.strip(".,;:()[]+") for word in text.split() if "." in word.strip(".,;:()")]
        assert any(number in seen for number in numbers), (text, numbers)


@pytest.mark.parametrize("theme", ["light"])
def test_a_column_and_a_list_have_one_style_of_numbers(chromium, pages, theme):
    """In a column of numbers all have decimals, or none has."""
    chromium.open(pages / "report.html", theme=theme)
    draw_all(chromium)
    mixed = chromium.run(
        """const mixed = [];
        for (const table of document.querySelectorAll('table')) {
          const rows = [...table.tBodies[0].rows];
          for (let c = 0; c < (rows[0]?.cells.length ?? 0); c++) {
            const texts = rows.map((row) => row.cells[c]?.textContent ?? '').filter((t) => /^[+−]?[\\d,]+(\\.\\d+)?$/.test(t));
            const exact = texts.filter((t) => t.includes('.')).length;
            const small = texts.every((t) => !t.includes(','));
            if (exact && exact < texts.length && small) mixed.push(`${table.parentNode.ariaLabel} ${c}: ${texts.slice(0, 6)}`);
          }
        }
        return mixed;"""
    )
    assert mixed == []


def test_one_of_a_thing_is_singular(chromium, pages):
    chromium.open(pages / "ones.html")
    draw_all(chromium)
    found = chromium.run(
        "return [...document.body.innerText.matchAll(new RegExp(arguments[0], 'gm'))].map((m) => m[0])", ONES
    )
    assert found == []


def test_on_a_phone_nothing_is_cut_without_a_hint_and_targets_are_large(chromium, pages):
    chromium.open(pages / "report.html", width=390)
    draw_all(chromium)
    silent = chromium.run(
        "return [...document.querySelectorAll('.scroll')].filter((n) => n.scrollWidth > n.clientWidth + 1 && "
        "!getComputedStyle(n, '::before').content.includes('Scroll')).map((n) => n.ariaLabel)"
    )
    assert silent == []
    lens = "const n = document.querySelector('#lens .view .scroll'); return n.scrollWidth - n.clientWidth"
    assert chromium.run(lens) <= 1
    small = chromium.run(
        """return [...document.querySelectorAll('button, select, summary, [role=option], #contents a, .findings a')]
        .filter((n) => { const b = n.getBoundingClientRect(); return b.width && b.height < 40; })
        .map((n) => `${n.tagName} ${n.className} ${n.textContent.slice(0, 20)} ${n.getBoundingClientRect().height}`)"""
    )
    assert small == []


def test_every_matrix_has_names_of_its_axes_and_a_scale(chromium, pages):
    chromium.open(pages / "report.html")
    draw_all(chromium)
    bare = chromium.run(
        """return [...document.querySelectorAll('.matrix')].filter((n) => {
          const axes = [...n.parentNode.querySelectorAll('.down, .across')].map((a) => a.textContent);
          const scale = n.closest('.view').querySelector('.legend');
          return axes.length < 2 || axes.some((a) => !/[a-z]+ 0 to \\d+/.test(a)) || !scale;
        }).length"""
    )
    assert bare == 0 and chromium.run("return document.querySelectorAll('.matrix').length") >= 3


def test_the_map_of_step_0_fills_its_frame(chromium, pages):
    chromium.open(pages / "report.html")
    draw_all(chromium)
    spreads = chromium.run(
        """return [...document.querySelectorAll('#embeddings figure svg')].slice(0, 2).map((picture) => {
          const x = [...picture.querySelectorAll('circle.faint')].map((n) => Number(n.getAttribute('cx')));
          return (Math.max(...x) - Math.min(...x)) / picture.clientWidth;
        })"""
    )
    assert min(spreads) > 0.6, spreads


def test_the_methods_are_folded(chromium, pages):
    chromium.open(pages / "report.html")
    assert chromium.run("return document.getElementById('methods').offsetHeight") < 400
