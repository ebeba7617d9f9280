from __future__ import annotations

from collections.abc import Mapping
from xml.etree import ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from serving.chart import Axis, Panel, chart

LINES = st.dictionaries(
    st.sampled_from(["ours", "<peer> & co"]),
    st.dictionaries(
        st.integers(1, 128), st.one_of(st.floats(1e-9, 1e12), st.sampled_from([0.0, float("nan"), float("inf")]))
    ),
    max_size=2,
)
SVG = "{http://www.w3.org/2000/svg}"


@given(lines=LINES)
def test_any_figures_make_a_picture_that_can_be_parsed(lines: Mapping[str, Mapping[int, float]]) -> None:
    ET.fromstring(chart("Any <model>", [Panel("tokens/s", lines)]))  # noqa: S314 - our own text


def test_every_measured_point_is_drawn() -> None:
    picture = chart("Model", [Panel("tokens/s", {"ours": {1: 100, 8: 700}, "peer": {1: 50, 8: float("nan")}})])
    assert len(ET.fromstring(picture).findall(f".//{SVG}circle")) == 3  # noqa: S314 - our own text


@given(low=st.floats(1e-3, 1e3), factor=st.floats(1, 1e4), part=st.floats(0, 1))
def test_values_stay_on_their_axis(low: float, factor: float, part: float) -> None:
    axis = Axis.of([low, low * factor], 10, 90)
    assert 10 <= axis.place(low * factor**part) <= 90
