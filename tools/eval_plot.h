// A picture of quality against bytes and speed: one self-contained SVG.
#ifndef TINYSERVE_TOOLS_EVAL_PLOT_H_
#define TINYSERVE_TOOLS_EVAL_PLOT_H_

#include <cstddef>
#include <string>
#include <vector>

#include "tools/eval_report.h"

namespace tinyserve {

struct PlotPoint {
  double x, y;
  std::string label;
};

// Indices of the points that no other one beats in x and y at once, by x. Less y is better; less x
// too, or more x where `more_x`.
std::vector<size_t> ParetoFront(const std::vector<PlotPoint>& points, bool more_x);

// For each context two panels side by side: KL (logarithmic) over KV bytes read a token, and over
// decode speed; the Pareto front is drawn.
std::string EvalPlot(const std::vector<EvalLine>& lines, const EvalSetup& setup);

}  // namespace tinyserve

#endif  // TINYSERVE_TOOLS_EVAL_PLOT_H_
