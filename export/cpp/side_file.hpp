// NAME.json, which the export writes beside NAME.tflite and which describes it.

#pragma once

#include <openssl/evp.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <vector>

#include "files.hpp"

using nlohmann::json;

using Numbers = std::vector<int32_t>;

constexpr int kDescriptionVersion = 3;       // its fields have other meanings in other versions
constexpr std::array kRuntime = {2, 21, 0};  // what LiteRT 2.3.0 counts as among the versions of TensorFlow Lite
constexpr double kLargest = 1e30;            // of a coefficient: what float32 holds, with room for products

inline bool is_count(const json& value) { return value.is_number_integer() && value >= 1 && value <= INT32_MAX; }

// Returns the numbers of a version such as "2.13.0", or zeros.
inline std::array<int, 3> version_of(const json& version) {
  std::array<int, 3> numbers = {0, 0, 0};
  const std::string given = version.is_string() ? version.get<std::string>() : "";
  char rest;
  int found = std::sscanf(given.c_str(), "%3d.%3d.%3d%c", &numbers[0], &numbers[1], &numbers[2], &rest);
  return found == 3 ? numbers : std::array{0, 0, 0};
}

inline bool is_number(const json& value, double least = -kLargest, double most = kLargest) {
  return value.is_number() && value.get<double>() >= least && value.get<double>() <= most;
}

// Returns what stands in place of an entry, in a few words.
inline std::string in_words(const json* value) {
  if (value == nullptr) return "none";
  if (value->is_array()) return text("a list of ", value->size());
  return value->is_object() ? "an object" : value->dump(-1, ' ', true).substr(0, 40);
}

// NAME.json and its entries, of which `sampler.name` and `steps.t.0` are some.
class Entries {
 public:
  Entries(const fs::path& side, const json& about) : side_(side), about_(about) {}

  const json* find(std::string name) const {
    std::replace(name.begin(), name.end(), '.', '/');
    const json::json_pointer at("/" + name);
    return about_.contains(at) ? &about_.at(at) : nullptr;
  }
  bool has(const std::string& name) const { return find(name) != nullptr && !find(name)->is_null(); }

  // Returns an entry. Throws InputError where it is not as expected.
  template <typename Check>
  const json& check(const std::string& name, const std::string& expected, Check is_right) const {
    const json* value = find(name);
    if (value != nullptr && is_right(*value)) return *value;
    throw InputError(text(side_.string(), " must have ", name, ", ", expected, ". Received: ", in_words(value)));
  }
  void check_numbers(const std::string& name, size_t count) const {
    check(name, text("a list of ", count), [&](auto& of) { return of.is_array() && of.size() == count; });
    for (size_t i = 0; i < count; ++i) {
      check(text(name, ".", i), "a number of float32", [](auto& of) { return is_number(of); });
    }
  }

 private:
  const fs::path& side_;
  const json& about_;
};

// Checks that alpha_bar falls, and returns the timesteps at which the side file knows it.
inline Numbers checked_schedule(const Entries& entries) {
  const json& alpha_bars =
      entries.check("schedule.alpha_bars", "a list of numbers", [](auto& of) { return of.is_array() && !of.empty(); });
  double before = 1;
  for (size_t i = 0; i < alpha_bars.size(); ++i) {
    entries.check(text("schedule.alpha_bars.", i), text("at least 0 and less than ", before),
                  [&](auto& of) { return is_number(of, 0) && of < before; });
    before = alpha_bars[i];
  }
  Numbers timesteps(alpha_bars.size());
  std::iota(timesteps.begin(), timesteps.end(), 0);
  if (!entries.has("schedule.timesteps")) return timesteps;
  entries.check_numbers("schedule.timesteps", timesteps.size());
  int64_t least = 0;
  for (size_t i = 0; i < timesteps.size(); ++i) {
    timesteps[i] =
        entries.check(text("schedule.timesteps.", i), text("a whole number of at least ", least),
                      [&](auto& of) { return of.is_number_integer() && is_number(of, double(least), INT32_MAX); });
    least = int64_t(timesteps[i]) + 1;
  }
  return timesteps;
}

// Checks the rows of a walk: columns of as many numbers as there are calls, at timesteps of the schedule.
inline void check_steps(const Entries& entries, size_t calls, const Numbers& timesteps) {
  std::vector<std::string> columns = {"t", "from_x0", "from_xt", "noise_std"};
  const std::vector<std::string> groups[] = {
      {"from_memory", "memory_from_x0", "memory_from_xt", "memory_from_memory"},
      {"log_variance_low", "log_variance_high"},
  };
  for (const auto& group : groups) {
    bool is_used = std::any_of(group.begin(), group.end(), [&](auto& name) { return entries.has("steps." + name); });
    if (is_used) columns.insert(columns.end(), group.begin(), group.end());
  }
  for (const std::string& name : columns) entries.check_numbers("steps." + name, calls);
  auto is_known = [&](const json& t) {
    return t.is_number_integer() && std::binary_search(timesteps.begin(), timesteps.end(), t.get<double>());
  };
  for (size_t i = 0; i < calls; ++i) entries.check(text("steps.t.", i), "a timestep of the schedule", is_known);
}

// Checks what the ways to a picture need to know of the sampler.
inline void check_sampler(const Entries& entries) {
  const json& name = entries.check("sampler.name", "a text", [](auto& of) { return of.is_string(); });
  entries.check("sampler.num_steps", "a whole number of at least 1", is_count);
  entries.check("sampler.clip", "true, false or \"dynamic\"",
                [](auto& of) { return of.is_boolean() || of == "dynamic"; });
  if (name == "ddim") {
    entries.check("sampler.eta", "a number in [0, 1]", [](auto& of) { return is_number(of, 0, 1); });
  }
  if (name != "ancestral") return;
  auto is_variance = [](const json& of) { return of == "small" || of == "large" || of == "learned" || of.is_array(); };
  const json& variance =
      entries.check("sampler.variance", "\"small\", \"large\", \"learned\" or a list of numbers", is_variance);
  if (variance.is_array()) entries.check_numbers("sampler.variance", variance.size());
}

// Throws InputError for the first entry that is not what an export writes.
inline void check_entries(const Entries& entries) {
  for (const char* name : {"network_calls", "state_channels", "batch_size", "bytes"}) {
    entries.check(name, "a whole number of at least 1", is_count);
  }
  entries.check("num_classes", "null or a whole number of at least 1",
                [](auto& of) { return of.is_null() || is_count(of); });
  entries.check("image_shape", "three whole numbers of at least 1", [](auto& of) {
    return of.is_array() && of.size() == 3 && std::all_of(of.begin(), of.end(), is_count);
  });
  for (const char* name : {"file", "precision", "sha256"}) {
    entries.check(name, "a text", [](auto& of) { return of.is_string(); });
  }
  entries.check("min_runtime_version", "a version such as \"2.13.0\"",
                [](auto& of) { return version_of(of) != std::array{0, 0, 0}; });
  size_t calls = entries.find("network_calls")->get<size_t>();
  check_steps(entries, calls, checked_schedule(entries));
  check_sampler(entries);
}

// Throws InputError for a file that needs a newer runtime than this one.
inline void check_runtime(const fs::path& path, const json& about) {
  std::array<int, 3> needed = version_of(about["min_runtime_version"]);
  if (needed <= kRuntime) return;
  throw InputError(text(path.string(), " needs TensorFlow Lite ", needed[0], ".", needed[1], ".", needed[2],
                        " or newer. Received: LiteRT 2.3.0, which counts as ", kRuntime[0], ".", kRuntime[1], ".",
                        kRuntime[2]));
}

// Reads and checks NAME.json of NAME.tflite.
inline json read_side_file(const fs::path& path) {
  fs::path side = fs::path(path).replace_extension(".json");
  for (const fs::path& file : {path, side}) {
    if (is_file(file)) continue;
    throw InputError(text(file.string(), " is missing: an export is NAME.tflite with NAME.json beside it"));
  }
  const std::string_view content = mapped(side);
  json about = json::parse(content.begin(), content.end(), nullptr, false);
  if (!about.is_object()) {
    throw InputError(text(side.string(), " must be the description that the export wrote beside the file. ",
                          "Received: something else (no object of JSON)"));
  }
  Entries entries(side, about);
  const json* version = entries.find("description_version");
  if (version == nullptr || *version != kDescriptionVersion) {
    throw InputError(text(side.string(), " must have description_version ", kDescriptionVersion,
                          ", the one that generate reads. Received: ",
                          version == nullptr ? "none, as in older exports" : in_words(version)));
  }
  check_entries(entries);
  check_runtime(path, about);
  return about;
}

// Throws InputError for bytes that are not the file that the side file describes.
inline void check_content(const fs::path& path, std::string_view bytes, const json& about) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  EVP_Digest(bytes.data(), bytes.size(), digest, &size, EVP_sha256(), nullptr);
  std::string hex;
  for (unsigned int i = 0; i < size; ++i) {
    char byte[3];
    std::snprintf(byte, sizeof byte, "%02x", digest[i]);
    hex += byte;
  }
  if (hex == about["sha256"]) return;
  throw InputError(text(path.string(), " must be the file that ", path.stem().string(),
                        ".json describes: ", about["bytes"], " bytes of another sha256. Received: ", bytes.size(),
                        " bytes, truncated, altered or of another export"));
}
