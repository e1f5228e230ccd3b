// Runs a fuzz target without libFuzzer: every file of the corpus, then a bounded number of seeded
// mutations of them. Mutation i of seed s depends on (s, i) and the corpus alone, so a failure is
// replayed by the command that is printed with it.
//   fuzz_x CORPUS_DIR [--seed N] [--first I] [--runs N] [--seconds N]
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "base/file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
// Sanitizers end the process by SIGABRT, so that OnSignal can say which input it was.
extern "C" const char* __asan_default_options() { return "abort_on_error=1"; }
extern "C" const char* __ubsan_default_options() { return "abort_on_error=1:print_stacktrace=1"; }

namespace tinyserve {
namespace {

using Bytes = std::vector<uint8_t>;

constexpr unsigned kInputSecondsMax = 20;  // an input that takes longer is a finding
constexpr uint64_t kInputBytesMax = uint64_t{1} << 20;
constexpr uint64_t kResidentBytesMax = uint64_t{3} << 30;

struct Options {
  std::string corpus;
  uint64_t seed = 1, first = 0, runs = 100000;
  double seconds = 3;
};

// What runs now, where a signal handler can find it.
char current_description[1024];
const uint8_t* current_data = nullptr;
size_t current_size = 0;

void WriteError(const char* text) {
  if (write(STDERR_FILENO, text, std::strlen(text)) < 0) return;
}

void ReportCurrent() {
  if (current_data == nullptr) return;
  WriteError("\nfuzz: failed in: ");
  WriteError(current_description);
  WriteError("\n");
  if (FILE* out = std::fopen("fuzz_failure.bin", "wb")) {
    const size_t written = std::fwrite(current_data, 1, current_size, out);
    std::fclose(out);
    if (written == current_size) WriteError("fuzz: the input is in ./fuzz_failure.bin\n");
  }
  current_data = nullptr;
}

void OnSignal(int signal) {
  if (signal == SIGALRM) WriteError("fuzz: one input took more than 20 seconds\n");
  ReportCurrent();
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

void RunOne(const Bytes& input, const std::string& description) {
  std::snprintf(current_description, sizeof current_description, "%s", description.c_str());
  // Exactly sized and its own allocation, so that ASan sees the first byte past the end.
  const Bytes exact(input.begin(), input.end());
  current_data = exact.data();
  current_size = exact.size();
  alarm(kInputSecondsMax);
  LLVMFuzzerTestOneInput(exact.data(), exact.size());
  alarm(0);
  current_data = nullptr;
}

struct Seed {
  std::string name;
  Bytes bytes;
};

std::vector<Seed> ReadCorpus(const std::string& dir) {
  std::vector<Seed> seeds;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(dir, error)) {
    if (!entry.is_regular_file()) continue;
    Result<std::string> text = ReadFile(entry.path().string(), kInputBytesMax);
    if (!text.ok()) {
      std::fprintf(stderr, "fuzz: %s\n", text.status().message().c_str());
      std::exit(2);
    }
    seeds.push_back({entry.path().filename().string(), Bytes(text->begin(), text->end())});
  }
  // The system's order is arbitrary; a replay needs one order.
  std::sort(seeds.begin(), seeds.end(),
            [](const Seed& a, const Seed& b) { return a.name < b.name; });
  return seeds;
}

class Mutator {
 public:
  Mutator(const std::vector<Seed>& seeds, uint64_t seed, uint64_t index)
      : seeds_(seeds), rng_(seed * 0x9e3779b97f4a7c15u + index) {}

  Bytes Make() {
    Bytes bytes = seeds_[Below(seeds_.size())].bytes;
    const uint64_t changes = 1 + Below(4);
    for (uint64_t i = 0; i < changes; ++i) Change(&bytes);
    if (bytes.size() > kInputBytesMax) bytes.resize(kInputBytesMax);
    return bytes;
  }

 private:
  uint64_t Below(uint64_t limit) { return limit == 0 ? 0 : rng_() % limit; }

  void Change(Bytes* bytes) {
    switch (Below(8)) {
      case 0:
        FlipBit(bytes);
        break;
      case 1:
        SetByte(bytes);
        break;
      case 2:
      case 3:
        SetInteger(bytes);
        break;
      case 4:
        Erase(bytes);
        break;
      case 5:
        Insert(bytes);
        break;
      case 6:
        Splice(bytes);
        break;
      default:
        bytes->resize(Below(bytes->size() + 1));
        break;
    }
  }

  void FlipBit(Bytes* bytes) {
    if (bytes->empty()) return;
    (*bytes)[Below(bytes->size())] ^= static_cast<uint8_t>(1u << Below(8));
  }
  void SetByte(Bytes* bytes) {
    if (bytes->empty()) return;
    (*bytes)[Below(bytes->size())] = static_cast<uint8_t>(rng_());
  }
  // Numbers at which arithmetic and comparisons break, written where a number may be.
  void SetInteger(Bytes* bytes) {
    const uint64_t size = bytes->size();
    const uint64_t interesting[] = {0,
                                    1,
                                    Below(256),
                                    size,
                                    size + 1,
                                    0x7fff,
                                    0xffff,
                                    0x7fffffff,
                                    0x80000000u,
                                    0xffffffff,
                                    uint64_t{1} << 32,
                                    uint64_t{1} << 61,
                                    ~uint64_t{0} >> 1,
                                    uint64_t{1} << 63,
                                    ~uint64_t{0} - Below(64),
                                    rng_()};
    const uint64_t value = interesting[Below(std::size(interesting))];
    const size_t width = size_t{1} << Below(4);
    if (size < width) return;
    std::memcpy(bytes->data() + Below(size - width + 1), &value, width);
  }
  void Erase(Bytes* bytes) {
    const uint64_t begin = Below(bytes->size() + 1);
    const uint64_t count = Below(std::min<uint64_t>(bytes->size() - begin, 64) + 1);
    const auto from = bytes->begin() + static_cast<ptrdiff_t>(begin);
    bytes->erase(from, from + static_cast<ptrdiff_t>(count));
  }
  void Insert(Bytes* bytes) {
    Bytes added(1 + Below(32), static_cast<uint8_t>(rng_()));
    if (Below(2) == 0) {
      for (uint8_t& byte : added) byte = static_cast<uint8_t>(rng_());
    }
    bytes->insert(bytes->begin() + static_cast<ptrdiff_t>(Below(bytes->size() + 1)), added.begin(),
                  added.end());
  }
  // A stretch of a seed (perhaps the same one) over or into this input.
  void Splice(Bytes* bytes) {
    const Bytes& other = seeds_[Below(seeds_.size())].bytes;
    const uint64_t begin = Below(other.size() + 1);
    const uint64_t count = Below(other.size() - begin + 1);
    const auto from = other.begin() + static_cast<ptrdiff_t>(begin);
    const uint64_t at = Below(bytes->size() + 1);
    if (Below(2) == 0) {
      const uint64_t fitting = std::min(count, bytes->size() - at);
      std::copy(from, from + static_cast<ptrdiff_t>(fitting),
                bytes->begin() + static_cast<ptrdiff_t>(at));
    } else {
      bytes->insert(bytes->begin() + static_cast<ptrdiff_t>(at), from,
                    from + static_cast<ptrdiff_t>(count));
    }
  }

  const std::vector<Seed>& seeds_;
  std::mt19937_64 rng_;
};

bool ReadOptions(int argc, char** argv, Options* options) {
  if (argc < 2 || argc % 2 != 0) return false;
  options->corpus = argv[1];
  for (int i = 2; i < argc; i += 2) {
    const std::string name = argv[i];
    char* end = nullptr;
    const uint64_t value = std::strtoull(argv[i + 1], &end, 10);
    if (*end != 0) return false;
    if (name == "--seed") {
      options->seed = value;
    } else if (name == "--first") {
      options->first = value;
    } else if (name == "--runs") {
      options->runs = value;
    } else if (name == "--seconds") {
      options->seconds = static_cast<double>(value);
    } else {
      return false;
    }
  }
  return true;
}

int RunAll(const char* program, const Options& options) {
  const std::vector<Seed> seeds = ReadCorpus(options.corpus);
  if (seeds.empty()) {
    std::fprintf(stderr, "fuzz: no seed files in %s\n", options.corpus.c_str());
    return 2;
  }
  for (const Seed& seed : seeds) RunOne(seed.bytes, "seed file " + seed.name);
  const auto start = std::chrono::steady_clock::now();
  uint64_t ran = 0;
  for (; ran < options.runs; ++ran) {
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    if (taken.count() > options.seconds) break;
    const uint64_t index = options.first + ran;
    RunOne(Mutator(seeds, options.seed, index).Make(),
           std::string(program) + " " + options.corpus + " --seed " + std::to_string(options.seed) +
               " --first " + std::to_string(index) + " --runs 1");
  }
  struct rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  const uint64_t peak_bytes = static_cast<uint64_t>(usage.ru_maxrss) * 1024;
  std::printf("fuzz: %zu seeds and %llu mutations of seed %llu, peak memory %llu MiB\n",
              seeds.size(), static_cast<unsigned long long>(ran),
              static_cast<unsigned long long>(options.seed),
              static_cast<unsigned long long>(peak_bytes >> 20));
  if (peak_bytes > kResidentBytesMax) {
    std::fprintf(stderr, "fuzz: peak memory is above %llu MiB\n",
                 static_cast<unsigned long long>(kResidentBytesMax >> 20));
    return 1;
  }
  return 0;
}

}  // namespace
}  // namespace tinyserve

int main(int argc, char** argv) {
  tinyserve::Options options;
  if (!tinyserve::ReadOptions(argc, argv, &options)) {
    std::fprintf(stderr, "usage: %s CORPUS_DIR [--seed N] [--first I] [--runs N] [--seconds N]\n",
                 argv[0]);
    return 2;
  }
  for (const int signal : {SIGABRT, SIGALRM}) std::signal(signal, tinyserve::OnSignal);
#ifndef __SANITIZE_ADDRESS__  // its own report of these is better, and ends in SIGABRT
  for (const int signal : {SIGSEGV, SIGBUS, SIGFPE, SIGILL})
    std::signal(signal, tinyserve::OnSignal);
#endif
  return tinyserve::RunAll(argv[0], options);
}
