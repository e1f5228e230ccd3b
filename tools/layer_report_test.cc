#include "tools/layer_report.h"

#include <gtest/gtest.h>

#include <cmath>

namespace tinyserve {
namespace {

std::vector<LayerSelection> Layers() {
  LayerSelection a{.layer = 0, .kv_head = 1, .stats = {}}, b = a, idle = a;
  a.stats = {.queries = 4,
             .pages_held = 400,
             .pages_scored = 360,
             .pages_read = 100,
             .pages_followed = 75,
             .pages_reused = 60,
             .tokens_read = 1600,
             .bytes_read = 1000,
             .bytes_held = 4000,
             .score_seconds = 2e-6,
             .select_seconds = 4e-6,
             .attend_seconds = 40e-6};
  b.layer = 1;
  b.stats = a.stats;
  b.stats.pages_reused = 15;
  b.stats.bytes_read = 5000;  // records of pages that were all read
  idle.layer = 2;
  return {a, b, idle};
}

TEST(LayerReport, FiguresOfEachAndOfAll) {
  const auto layers = Layers();
  EXPECT_DOUBLE_EQ(HitRate(layers[0].stats), 0.8);
  EXPECT_TRUE(std::isnan(HitRate(layers[2].stats)));
  const SelectionStats all = SumOf(layers);
  EXPECT_EQ(all.queries, 8u);
  EXPECT_EQ(all.bytes_read, 6000u);
  EXPECT_DOUBLE_EQ(HitRate(all), 0.5);
  EXPECT_DOUBLE_EQ(all.attend_seconds, 80e-6);
}

TEST(LayerReport, JsonHoldsWhatSelected) {
  const boost::json::array json = LayersJson(Layers());
  ASSERT_EQ(json.size(), 2u);
  const boost::json::object& second = json[1].as_object();
  EXPECT_EQ(second.at("layer").to_number<int>(), 1);
  EXPECT_EQ(second.at("kv_head").to_number<int>(), 1);
  EXPECT_EQ(second.at("pages_selected").to_number<int>(), 100);
  EXPECT_EQ(second.at("bytes_avoided").to_number<int>(), -1000);
  EXPECT_DOUBLE_EQ(second.at("hit_rate").to_number<double>(), 0.2);
  EXPECT_DOUBLE_EQ(second.at("attend_seconds").to_number<double>(), 40e-6);
}

TEST(LayerReport, TableHasARowForEachAndOneOfAll) {
  const std::string table = LayerTable(Layers());
  EXPECT_NE(table.find("    0    1         4    100.0     90.0     25.0   80 %    25 %"),
            std::string::npos)
      << table;
  EXPECT_NE(table.find("  all              8"), std::string::npos) << table;
  EXPECT_EQ(std::count(table.begin(), table.end(), '\n'), 4);
  EXPECT_EQ(LayerTable({}), "");
}

}  // namespace
}  // namespace tinyserve
