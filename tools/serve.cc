// `tinyserve serve`: the HTTP server.
#include <fmt/format.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <memory>

#include "base/file.h"
#include "server/api_keys.h"
#include "server/http_server.h"
#include "server/metrics.h"
#include "server/service.h"
#include "text/json_text.h"
#include "tools/commands.h"
#include "tools/config_file.h"
#include "tools/format.h"
#include "tools/generation.h"
#include "tools/options.h"
#include "tools/progress.h"
#include "tools/trace_report.h"

namespace tinyserve {
namespace {

constexpr const char* kKeysVariable = "TINYSERVE_API_KEYS";
constexpr uint64_t kKeyFileBytesMax = 1 << 20;

struct ServeFlags {
  EngineFlags engine;
  HttpOptions http;
  ServiceOptions service;
  std::vector<std::string> metadata;
  uint32_t sequences_max = 32;
  uint32_t queue_max = 256;
  uint32_t step_tokens_max = EngineOptions().step_tokens_max;
  std::string api_key_file, log_level = "info";
  std::string cache_policy = "lru";
  std::string tool_parser = "auto", reasoning_parser = "auto";
  uint32_t sessions_max = EngineOptions().sessions_max;
  double session_ttl_seconds = EngineOptions().session_ttl_seconds;
  double session_share = EngineOptions().session_share;
  double target_itl_ms = 0, min_ratio = EngineOptions().min_ratio;
  bool insecure = false, no_prefix_cache = false, exact_reuse = false;
};

// Keys of the file and of the environment, where they are separated by commas. Errors: kNotFound,
// kIo, kInvalidArgument, naming the source.
Result<std::vector<std::string>> LoadKeys(const ServeFlags& flags) {
  std::vector<std::string> keys;
  if (!flags.api_key_file.empty()) {
    TS_ASSIGN_OR_RETURN(const std::string text, ReadFile(flags.api_key_file, kKeyFileBytesMax));
    const Result<std::vector<std::string>> parsed = ParseApiKeys(text);
    if (!parsed.ok()) {
      return Status(parsed.status().code(),
                    fmt::format("{}: {}", flags.api_key_file, parsed.status().message()));
    }
    if (parsed->empty()) {
      return Status(Code::kInvalidArgument, fmt::format("{} holds no API key", flags.api_key_file));
    }
    keys = *parsed;
  }
  if (const char* variable = std::getenv(kKeysVariable)) {
    std::string text = variable;
    std::replace(text.begin(), text.end(), ',', '\n');
    const Result<std::vector<std::string>> parsed = ParseApiKeys(text);
    if (!parsed.ok()) {
      return Status(parsed.status().code(),
                    fmt::format("{}: {}", kKeysVariable, parsed.status().message()));
    }
    keys.insert(keys.end(), parsed->begin(), parsed->end());
  }
  return keys;
}

void StartLog(const std::string& level) {
  auto log = spdlog::stderr_color_mt("tinyserve");
  log->set_pattern("%Y-%m-%dT%H:%M:%S.%e%z %l %v");
  log->set_level(spdlog::level::from_str(level));
  log->flush_on(spdlog::level::info);
  spdlog::set_default_logger(std::move(log));
}

std::string Address(const ServeFlags& flags, uint16_t port) {
  const bool v6 = flags.http.host.find(':') != std::string::npos;
  return fmt::format("{}://{}{}{}:{}", flags.http.tls_certificate.empty() ? "http" : "https",
                     v6 ? "[" : "", flags.http.host, v6 ? "]" : "", port);
}

void Greet(const ServeFlags& flags, const Engine& engine, const std::string& address, bool keys) {
  const std::string key = keys ? " -H \"Authorization: Bearer $KEY\"" : "";
  const bool chat = engine.info().has_chat_template;
  fmt::print("{} on {}\n  dashboard  {}/\n  try        curl {}{}{} -d '{}'\n",
             PrintableLine(flags.service.models.front(), 60), address, address,
             address + (chat ? "/v1/chat/completions" : "/v1/completions"), key,
             " -H \"Content-Type: application/json\"",
             chat ? R"({"messages": [{"role": "user", "content": "What is a cache?"}]})"
                  : R"({"prompt": "A cache is", "max_tokens": 32})");
  std::fflush(stdout);
}

// Selectors that requests may name as the server is: its own, and what metadata is kept for; one
// that needs none, and takes effect in a short chat; all pages.
std::vector<std::string> Suggestions(const ServeFlags& flags) {
  std::vector<std::string> all = {flags.engine.selector};
  all.insert(all.end(), flags.metadata.begin(), flags.metadata.end());
  all.insert(all.end(), {"streaming:ratio=0.3,min_tokens=64,min_context=0", "full"});
  std::vector<std::string> once;
  for (std::string& one : all) {
    if (std::find(once.begin(), once.end(), one) == once.end()) once.push_back(std::move(one));
  }
  return once;
}

Status CheckFlags(ServeFlags* flags) {
  TS_RETURN_IF_ERROR(RequireModel(flags->engine));
  if (flags->service.models.empty()) {
    flags->service.models = {std::filesystem::path(flags->engine.model).stem().string()};
  }
  if (flags->tool_parser != "auto")
    flags->service.parsers.tools = ParseToolFormat(flags->tool_parser);
  if (flags->reasoning_parser != "auto")
    flags->service.parsers.reasoning = flags->reasoning_parser == "think";
  flags->service.origins.loopback = IsLoopbackHost(flags->http.host);
  flags->service.selectors = Suggestions(*flags);
  if (flags->step_tokens_max < flags->sequences_max) {
    return Status(Code::kInvalidArgument, "--step-tokens must be at least --sequences");
  }
  return Status();
}

Status CheckOpenness(const ServeFlags& flags, const std::vector<std::string>& keys) {
  if (IsLoopbackHost(flags.http.host) || !keys.empty() || flags.insecure) return Status();
  return Status(Code::kInvalidArgument,
                fmt::format("--host {} is open to others, and no API key is set: give "
                            "--api-key-file or {}, or --insecure to serve anyone",
                            flags.http.host, kKeysVariable));
}

EngineOptions EngineOptionsOf(const ServeFlags& flags) {
  EngineOptions options = flags.engine.ToOptions();
  options.metadata = flags.metadata;
  options.sequences_max = flags.sequences_max;
  options.queue_max = flags.queue_max;
  options.step_tokens_max = flags.step_tokens_max;
  options.prefix_cache = !flags.no_prefix_cache;
  options.exact_reuse = flags.exact_reuse;
  options.cache_policy = flags.cache_policy;
  options.sessions_max = flags.sessions_max;
  options.session_ttl_seconds = flags.session_ttl_seconds;
  options.session_share = flags.session_share;
  options.target_itl_ms = flags.target_itl_ms;
  options.min_ratio = flags.min_ratio;
  options.on_tuning = [](const TuningStats& t) {
    spdlog::info(
        "tuning: steps take {:.1f} ms, rung {} of {}: prompt chunks of {} tokens, ratio {}, "
        "{} requests at once",
        1e3 * t.step_seconds, t.rung, t.rungs - 1, t.chunk_tokens, t.ratio, t.sequences);
  };
  return options;
}

void OnSignal(int signal, const ServeFlags& flags, Service* service, ApiKeys* keys,
              HttpServer* server) {
  if (signal == SIGHUP) {
    Result<std::vector<std::string>> loaded = LoadKeys(flags);
    if (loaded.ok()) {
      keys->Set(*std::move(loaded));
      spdlog::info("{} API keys are loaded", keys->size());
    } else {
      spdlog::error("the API keys stay as they were: {}", loaded.status().message());
    }
    const Status tls = server->ReloadTls();
    if (!tls.ok()) spdlog::error("the certificate stays as it was: {}", tls.message());
    return;
  }
  // The model cannot be stopped from loading, and there is nothing to save.
  if (service->engine() == nullptr) std::_Exit(0);
  spdlog::info("stopping: {} s for what runs; another signal drops it", flags.http.drain_seconds);
  service->SetStopping();
  server->Stop();
}

Result<int> RunServe(ServeFlags* flags, CLI::App* app) {
  TS_RETURN_IF_ERROR(ApplyConfigFile(flags->engine.config, app));
  TS_RETURN_IF_ERROR(CheckFlags(flags));
  TS_ASSIGN_OR_RETURN(std::vector<std::string> loaded, LoadKeys(*flags));
  TS_RETURN_IF_ERROR(CheckOpenness(*flags, loaded));
  StartLog(flags->log_level);
  flags->service.config_json = ToJson(EffectiveConfig(*app));
  flags->service.version = TINYSERVE_VERSION;
  spdlog::info("config {}", flags->service.config_json);
  ApiKeys keys;
  keys.Set(std::move(loaded));
  const std::unique_ptr<Metrics> metrics = Metrics::Create(flags->service.models.front());
  std::unique_ptr<Engine> engine;  // outlives the service and the server
  Service service(flags->service, &keys, metrics.get());
  TS_ASSIGN_OR_RETURN(const std::unique_ptr<HttpServer> server,
                      HttpServer::Listen(flags->http, &service));
  server->TakeSignals([&](int signal) { OnSignal(signal, *flags, &service, &keys, server.get()); });
  server->Start();
  const std::string address = Address(*flags, server->port());
  spdlog::info("listening on {}; loading {}", address, flags->engine.model);
  {
    Progress progress("Loading", 0.2, 0.5);
    EngineOptions options = EngineOptionsOf(*flags);
    options.on_load_progress = [&](double fraction) {
      progress.Update(fraction);
      service.SetLoading(fraction);
    };
    TS_ASSIGN_OR_RETURN(engine, Engine::Open(options));
  }
  service.SetEngine(engine.get());
  Greet(*flags, *engine, address, !keys.empty());
  server->Join();
  if (!flags->engine.trace.empty()) {
    TS_ASSIGN_OR_RETURN(const TraceCounts counts, engine->EndTrace());
    spdlog::info("{}", TraceLine(flags->engine.trace, counts));
  }
  spdlog::info("stopped");
  return 0;
}

void AddHttpOptions(CLI::App* app, ServeFlags* flags) {
  const auto add = [&](const char* name, auto* value, const char* type, const char* help,
                       const char* group) {
    return app->add_option(name, *value, help)
        ->type_name(type)
        ->capture_default_str()
        ->group(group);
  };
  HttpOptions& http = flags->http;
  add("--host", &http.host, "ADDRESS", "Address to listen on, or localhost", "Server");
  Limit(add("--port", &http.port, "N", "Port; 0: any free one", "Server"), 0, 65535);
  add("--served-model-name", &flags->service.models, "NAME",
      "What requests and replies call the model (may be repeated: the first is in replies); "
      "default: the file's name",
      "Server")
      ->allow_extra_args(false);
  Limit(add("--io-threads", &http.threads, "N", "Threads that read and write", "Server"), 1, 64);
  Limit(add("--drain-seconds", &http.drain_seconds, "S",
            "What runs at SIGTERM or Ctrl-C may still take so long", "Server"),
        0, 86400);
  Choose(add("--log-level", &flags->log_level, "LEVEL", "Log on standard error", "Server"),
         {"debug", "info", "warning", "error", "off"});
  Choose(add("--tool-parser", &flags->tool_parser, "FORMAT",
             "How the model writes calls of tools; auto: as its chat template tells", "Server"),
         {"auto", "hermes", "llama3_json", "mistral"});
  Choose(
      add("--reasoning-parser", &flags->reasoning_parser, "FORMAT",
          "Whether <think>…</think> before an answer is its reasoning_content; auto: as its chat "
          "template tells",
          "Server"),
      {"auto", "think", "none"});
  const auto limit = [&](const char* name, auto* value, const char* help, double low, double high) {
    Limit(add(name, value, "N", help, "Limits"), low, high);
  };
  limit("--sequences", &flags->sequences_max, "Requests that run at once", 1, 4096);
  limit("--queue", &flags->queue_max, "Requests that may wait; more get a 429", 1, 1 << 20);
  limit("--step-tokens", &flags->step_tokens_max, "Tokens of one step: prompts are cut to fit", 1,
        16384);
  limit("--connections", &http.connections_max, "Open connections; more get a 503", 1, 100000);
  limit("--header-bytes", &http.header_bytes_max, "Longest head of a request", 1024, 1 << 20);
  limit("--body-bytes", &http.body_bytes_max, "Longest body of a request", 1024, 1 << 30);
  limit("--bodies-bytes", &http.bodies_bytes_max, "All bodies that are being read", 1024,
        1099511627776.0);
  limit("--header-seconds", &http.header_seconds, "For a whole head to arrive", 1, 3600);
  limit("--body-seconds", &http.body_seconds, "For a whole body to arrive", 1, 3600);
  limit("--idle-seconds", &http.idle_seconds, "Between requests of a connection", 1, 86400);
  limit("--write-seconds", &http.write_seconds, "For a part of a reply to be taken", 1, 3600);
  limit("--heartbeat-seconds", &http.heartbeat_seconds, "Between comments in a silent stream", 1,
        3600);
  RequestLimits& limits = flags->service.limits;
  limit("--json-depth", &limits.json_depth_max, "Nesting of a body", 4, 128);
  limit("--prompts", &limits.prompts_max, "Prompts of a request", 1, 4096);
  ResponseStoreLimits& responses = flags->service.responses;
  limit("--responses", &responses.responses_max, "Responses that are kept; the oldest give way", 0,
        1 << 20);
  limit("--responses-bytes", &responses.bytes_max, "All of them", 0, 1099511627776.0);
  limit("--choices", &limits.choices_max, "Answers of a request: prompts times n", 1, 4096);
  limit("--request-seconds", &limits.request_seconds_max,
        "That a request may take, its wait included; 0: as long as it takes", 0, 86400);
}

// What is kept of earlier requests, and what gives way under load.
void AddReuseOptions(CLI::App* app, ServeFlags* flags) {
  app->add_flag("--no-prefix-cache", flags->no_prefix_cache,
                "Compute every prompt whole: nothing of earlier ones is used again")
      ->group("Server");
  Limit(app->add_option("--target-itl-ms", flags->target_itl_ms,
                        "Time between two tokens to hold, by smaller chunks of prompts, then a "
                        "smaller ratio for new requests, then fewer requests at once; 0: off")
            ->type_name("MS")
            ->capture_default_str()
            ->group("Server"),
        0, 60000);
  Limit(app->add_option("--min-ratio", flags->min_ratio, "The least ratio that it may choose")
            ->type_name("SHARE")
            ->capture_default_str()
            ->group("Server"),
        0.001, 1);
  Choose(app->add_option("--cache-policy", flags->cache_policy,
                         "What of earlier requests gives way first: what was not used for longest, "
                         "what was used least often, or uses times the work of computing it anew")
             ->type_name("HOW")
             ->capture_default_str()
             ->group("Server"),
         {"lru", "lfu", "cost"});
  const auto session = [&](const char* name, auto* value, const char* type, const char* help,
                           double low, double high) {
    Limit(app->add_option(name, *value, help)
              ->type_name(type)
              ->capture_default_str()
              ->group("Server"),
          low, high);
  };
  session("--session-ttl", &flags->session_ttl_seconds, "S",
          "How long a session lasts without a request: what the cache holds of it goes last", 0,
          86400 * 365.0);
  session("--sessions", &flags->sessions_max, "N", "Sessions that are known at a time", 1, 1 << 20);
  session("--session-share", &flags->session_share, "SHARE",
          "Of the KV pool, what may be kept for sessions", 0, 1);
  app->add_flag("--exact-reuse", flags->exact_reuse,
                "Of earlier requests use only what prefill computed, never what was generated")
      ->group("Server");
}

void AddAccessOptions(CLI::App* app, ServeFlags* flags) {
  const auto add = [&](const char* name, auto* value, const char* type, const char* help) {
    return app->add_option(name, *value, help)->type_name(type)->group("Access");
  };
  add("--api-key-file", &flags->api_key_file, "FILE",
      "API keys, one a line; read again at SIGHUP. Further ones: TINYSERVE_API_KEYS, separated by "
      "commas");
  add("--tls-cert", &flags->http.tls_certificate, "FILE",
      "Certificate for TLS (PEM), with those between it and its authority; read again at SIGHUP");
  add("--tls-key", &flags->http.tls_key, "FILE", "Its private key (PEM)");
  app->add_flag("--insecure", flags->insecure,
                "Serve anyone who reaches --host, also beyond this machine")
      ->group("Access");
  add("--allowed-host", &flags->service.origins.hosts, "NAME",
      "A further name in Host headers (may be repeated); on a loopback address only names of this "
      "machine are allowed")
      ->allow_extra_args(false);
  add("--cors-origin", &flags->service.origins.cors, "ORIGIN",
      "An origin whose pages may use this server, as in https://example.com, or * (may be "
      "repeated)")
      ->allow_extra_args(false);
}

}  // namespace

void AddServe(CLI::App* parent, Command* run) {
  CLI::App* app =
      parent->add_subcommand("serve", "Serve a model by OpenAI's API, with a dashboard");
  const auto flags = std::make_shared<ServeFlags>();
  AddModelOption(app, &flags->engine.model, false);
  AddConfigOption(app, &flags->engine);
  AddHttpOptions(app, flags.get());
  AddReuseOptions(app, flags.get());
  AddAccessOptions(app, flags.get());
  AddEngineOptions(app, &flags->engine);
  AddSelectorOptions(app, &flags->engine);
  app->add_option("--metadata", flags->metadata,
                  "Also keep what this selector needs to know of pages, so that a request may name "
                  "it (may be repeated)")
      ->type_name("SPEC")
      ->allow_extra_args(false)
      ->group("Engine");
  AddExample(app, "tinyserve serve --model model.gguf --port 8080");
  app->callback([=] { *run = [=] { return RunServe(flags.get(), app); }; });
}

}  // namespace tinyserve
