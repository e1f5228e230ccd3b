// `tinyserve bench` on a device: its peaks, and shares of them.
#include <gtest/gtest.h>

#include <boost/json/parse.hpp>
#include <boost/json/value.hpp>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "tools/program.h"

namespace tinyserve {
namespace {

namespace json = boost::json;

// Runs the program with --json, and reads what it has written.
std::vector<json::value> Bench(std::vector<std::string> arguments) {
  const std::filesystem::path file =
      std::filesystem::temp_directory_path() / "tinyserve_bench_on_device.json";
  arguments.insert(arguments.begin(), {"tinyserve", "bench"});
  arguments.insert(arguments.end(), {"--device", "cuda", "--json", file.string()});
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  EXPECT_EQ(RunProgram(static_cast<int>(argv.size()), argv.data()), 0);
  std::vector<json::value> lines;
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) lines.push_back(json::parse(line));
  std::filesystem::remove(file);
  return lines;
}

TEST(BenchOnADevice, MeasuresTheDevicesPeaks) {
  const std::vector<json::value> lines = Bench({"--machine"});
  ASSERT_EQ(lines.size(), 1u);
  const json::object& peaks = lines[0].as_object();
  EXPECT_TRUE(peaks.at("device").as_string().starts_with("cuda:0 "));
  EXPECT_GT(peaks.at("copy_bytes_per_s").to_number<double>(), 0);
  for (const char* kind : {"f32", "dp4a", "tensor_f16", "tensor_bf16"}) {
    EXPECT_GT(peaks.at("multiply_adds_per_s").as_object().at(kind).to_number<double>(), 0) << kind;
  }
}

TEST(BenchOnADevice, HoldsStepsAgainstThem) {
  const std::vector<std::string> tiny = {
      "--model",   TS_SOURCE_DIR "/tests/golden/tiny/llama-q4_k.gguf",
      "--prefill", "8",
      "--decode",  "2",
      "--depth",   "16",
      "--batch",   "2",
      "--repeat",  "1",
      "--threads", "1",
      "--ctx",     "64"};
  const std::vector<json::value> with = Bench(tiny);
  ASSERT_EQ(with.size(), 2u);
  for (const json::value& line : with) {
    EXPECT_GT(line.at("roofline_share").to_number<double>(), 0) << line;
    EXPECT_GT(line.at("bandwidth_share").to_number<double>(), 0) << line;
  }
  std::vector<std::string> without = tiny;
  without.push_back("--no-peaks");
  for (const json::value& line : Bench(without)) {
    EXPECT_TRUE(line.at("roofline_share").is_null()) << line;
  }
}

}  // namespace
}  // namespace tinyserve
