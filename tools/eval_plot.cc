#include "tools/eval_plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

namespace tinyserve {
namespace {

constexpr double kPanelWidth = 560, kPanelHeight = 380;
constexpr double kLeft = 70, kRight = 20, kTop = 40, kBottom = 50;  // margins of a panel
constexpr double kHeadHeight = 30;
constexpr double kLabelHeight = 13;
constexpr double kLabelCharWidth = 6;  // about, of the labels' font
constexpr int kXTicks = 5;

std::string Escape(const std::string& text) {
  std::string out;
  for (char c : text) {
    switch (c) {
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '&':
        out += "&amp;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        // Control characters are not allowed in XML.
        out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    }
  }
  return out;
}

std::string Text(double x, double y, const char* anchor, const std::string& text) {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\">{}</text>\n", x, y, anchor,
                     Escape(text));
}

std::string Line(double x1, double y1, double x2, double y2, const char* style) {
  return fmt::format(
      "<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" class=\"{}\"/>\n", x1, y1, x2,
      y2, style);
}

struct Panel {
  double left, top;  // of the panel on the sheet
  double x_max;
  int y_low, y_high;  // powers of ten
  std::vector<PlotPoint> points;

  double X(double x) const { return left + kLeft + x / x_max * (kPanelWidth - kLeft - kRight); }
  // What is below the axis, like a KL of 0, lies on it.
  double Y(double y) const {
    const double power = y > 0 ? std::max<double>(std::log10(y), y_low) : y_low;
    const double height = kPanelHeight - kTop - kBottom;
    return top + kTop + height * (y_high - power) / (y_high - y_low);
  }
};

// 1, 2 or 5 times a power of ten, at least `x`.
double RoundUp(double x) {
  const double power = std::pow(10.0, std::floor(std::log10(x)));
  for (double step : {1.0, 2.0, 5.0}) {
    if (step * power >= x) return step * power;
  }
  return 10 * power;
}

Panel PanelOf(double left, double top, std::vector<PlotPoint> points) {
  double x_max = 0, low = 1, high = 1e-9;
  for (const PlotPoint& p : points) {
    if (std::isfinite(p.x)) x_max = std::max(x_max, p.x);
    if (p.y <= 0) continue;
    low = std::min(low, p.y);
    high = std::max(high, p.y);
  }
  const int y_low = static_cast<int>(std::floor(std::log10(low * 0.999)));
  const int y_high = static_cast<int>(std::ceil(std::log10(high)));
  const double step = x_max > 0 ? RoundUp(x_max / kXTicks) : 1;
  return {.left = left,
          .top = top,
          .x_max = step * (x_max > 0 ? std::ceil(x_max / step) : kXTicks),
          .y_low = y_low,
          .y_high = std::max(y_high, y_low + 1),
          .points = std::move(points)};
}

std::string Axes(const Panel& panel, const std::string& title, const std::string& x_title) {
  const double right = panel.X(panel.x_max), bottom = panel.top + kPanelHeight - kBottom;
  std::string out;
  for (int power = panel.y_low; power <= panel.y_high; ++power) {
    const double y = panel.Y(std::pow(10.0, power));
    out += Line(panel.X(0), y, right, y, "grid");
    out += Text(panel.X(0) - 6, y + 4, "end",
                power == panel.y_low ? "0" : fmt::format("{:g}", std::pow(10.0, power)));
  }
  const double step = RoundUp(panel.x_max / kXTicks);
  for (int i = 0; i * step <= panel.x_max * 1.001; ++i) {
    const double x = panel.X(i * step);
    out += Line(x, panel.top + kTop, x, bottom, "grid");
    out += Text(x, bottom + 16, "middle", fmt::format("{:g}", i * step));
  }
  out += Line(panel.X(0), bottom, right, bottom, "axis");
  out += Line(panel.X(0), panel.top + kTop, panel.X(0), bottom, "axis");
  out += Text((panel.X(0) + right) / 2, bottom + 36, "middle", x_title);
  out += Text(panel.X(0), panel.top + kTop - 12, "start", title);
  return out;
}

struct Box {
  double left, right, y;  // y: of the middle line

  bool Meets(const Box& other) const {
    return left < other.right && right > other.left && std::abs(y - other.y) < kLabelHeight;
  }
};

// Labels beside their points: at the nearest height, to the right or to the left, where no other
// label or point is; a line leads to one that is not level with its point.
std::string Labels(const Panel& panel) {
  constexpr int kHeights = 12;  // 0, 1 line up, 1 down, 2 up ...
  std::vector<Box> taken;
  for (const PlotPoint& p : panel.points)
    taken.push_back({panel.X(p.x) - 5, panel.X(p.x) + 5, panel.Y(p.y)});
  std::string out;
  for (const PlotPoint& p : panel.points) {
    const double x = panel.X(p.x), y = panel.Y(p.y);
    const double width = kLabelCharWidth * static_cast<double>(p.label.size());
    Box box{x + 8, x + 8 + width, y};
    bool placed = false, to_right = true;
    for (int i = 0; i < 2 * kHeights && !placed; ++i) {
      to_right = i % 2 == 0;
      const int height = (i / 2 + 1) / 2 * (i / 2 % 2 == 1 ? -1 : 1);
      box = to_right ? Box{x + 8, x + 8 + width, y} : Box{x - 8 - width, x - 8, y};
      box.y += height * kLabelHeight;
      placed = box.left >= panel.left && box.right <= panel.left + kPanelWidth &&
               box.y > panel.top + kTop && box.y < panel.top + kPanelHeight - kBottom &&
               std::none_of(taken.begin(), taken.end(), [&](const Box& b) { return box.Meets(b); });
    }
    taken.push_back(box);
    const double edge = to_right ? box.left : box.right;
    if (box.y != y) out += Line(x, y, to_right ? edge - 1 : edge + 1, box.y, "lead");
    out += Text(edge, box.y + 4, to_right ? "start" : "end", p.label);
  }
  return out;
}

std::string Draw(const Panel& panel, const std::string& title, const std::string& x_title,
                 bool more_x) {
  std::string out = Axes(panel, title, x_title);
  const std::vector<size_t> front = ParetoFront(panel.points, more_x);
  std::string path;
  for (size_t i : front) {
    const PlotPoint& p = panel.points[i];
    path += fmt::format("{}{:.1f},{:.1f}", path.empty() ? "" : " ", panel.X(p.x), panel.Y(p.y));
  }
  out += fmt::format("<polyline points=\"{}\" class=\"front\"/>\n", path);
  for (size_t i = 0; i < panel.points.size(); ++i) {
    const PlotPoint& p = panel.points[i];
    const bool best = std::find(front.begin(), front.end(), i) != front.end();
    out += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"4\" class=\"{}\"/>\n", panel.X(p.x),
                       panel.Y(p.y), best ? "best" : "point");
  }
  return out + Labels(panel);
}

constexpr char kStyle[] =
    "<style>text{font:11px sans-serif;fill:#222}.grid{stroke:#ddd}.axis{stroke:#444}"
    ".lead{stroke:#999;stroke-width:.7}"
    ".front{fill:none;stroke:#1a73b8;stroke-width:1.5}.point{fill:#999}.best{fill:#1a73b8}"
    "</style>\n";

}  // namespace

std::vector<size_t> ParetoFront(const std::vector<PlotPoint>& points, bool more_x) {
  std::vector<size_t> order;
  for (size_t i = 0; i < points.size(); ++i) {
    if (std::isfinite(points[i].x) && std::isfinite(points[i].y)) order.push_back(i);
  }
  const auto cost = [&](size_t i) { return more_x ? -points[i].x : points[i].x; };
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return std::pair(cost(a), points[a].y) < std::pair(cost(b), points[b].y);
  });
  std::vector<size_t> front;
  for (size_t i : order) {
    if (front.empty() || points[i].y < points[front.back()].y) front.push_back(i);
  }
  if (more_x) std::reverse(front.begin(), front.end());
  return front;
}

std::string EvalPlot(const std::vector<EvalLine>& lines, const EvalSetup& setup) {
  std::string body;
  double top = kHeadHeight;
  for (size_t first = 0; first < lines.size();) {
    size_t last = first;
    std::vector<PlotPoint> bytes, speed;
    const EvalLine& head = lines[first];
    for (; last < lines.size() && lines[last].context == head.context &&
           lines[last].is_long == head.is_long;
         ++last) {
      const EvalLine& line = lines[last];
      const double share = line.kv_bytes_read_per_token / line.dense_bytes_read_per_token;
      bytes.push_back({100 * share, line.kl, line.method});
      if (std::isfinite(line.decode_tokens_per_s))
        speed.push_back({line.decode_tokens_per_s, line.kl, line.method});
    }
    const std::string title =
        fmt::format("KL from dense, nats a token: {} tokens, the last {} scored", head.context,
                    head.window_scored);
    body += Draw(PanelOf(0, top, std::move(bytes)), title, "KV bytes read a token, % of dense f16",
                 false);
    body += Draw(PanelOf(kPanelWidth, top, std::move(speed)), title,
                 "decoded tokens a second, one sequence", true);
    top += kPanelHeight;
    first = last;
  }
  return fmt::format(
             "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0:.0f} {1:.0f}\" "
             "width=\"{0:.0f}\" height=\"{1:.0f}\">\n{2}"
             "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
             2 * kPanelWidth, top, kStyle) +
         Text(kLeft, 20, "start",
              fmt::format("{} · {} · {} threads, target {}, compute {}", setup.model, setup.text,
                          setup.threads, setup.target, setup.compute)) +
         body + "</svg>\n";
}

}  // namespace tinyserve
