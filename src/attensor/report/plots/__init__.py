"""The plots of the page, one function each. A function returns None when nothing was measured for its plot."""

from __future__ import annotations

from attensor.report.charts import Chart
from attensor.report.plots.cost import cost_against_length, decoding
from attensor.report.plots.findings import scale_fits, skills
from attensor.report.plots.quality import pilots, quality_against_cost, quality_against_length, quality_curves
from attensor.report.reading import Results

__all__ = ["charts"]


def charts(results: Results) -> list[Chart]:
    """All plots for which there is something to show."""
    makers = (
        *(quality_against_cost, quality_curves, quality_against_length, cost_against_length, decoding),
        *(skills, scale_fits, pilots),
    )
    return [chart for maker in makers if (chart := maker(results)) is not None]
