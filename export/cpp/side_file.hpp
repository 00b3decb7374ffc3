// NAME.json, which the export writes beside NAME.tflite and which describes it.

#pragma once

#include <openssl/evp.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

using nlohmann::json;
namespace fs = std::filesystem;

using Numbers = std::vector<int32_t>;

constexpr int kDescriptionVersion = 3;  // its fields have other meanings in other versions
constexpr int kRuntime[] = {2, 21, 0};  // LiteRT 2.3.0 in the numbers of min_runtime_version
constexpr const char* kRuntimeName = "LiteRT 2.3.0 (2.21.0)";

// An input cannot be used; the message says why in one line.
struct InputError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <typename... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream joined;
  (joined << ... << parts);
  return joined.str();
}

inline bool is_count(const json& value) { return value.is_number_integer() && value >= 1 && value <= INT32_MAX; }

// Returns whether a side file has the entries that every walk needs.
inline bool is_usable(const json& about) {
  try {
    const json& shape = about.at("image_shape");
    const json& classes = about.at("num_classes");
    bool usable = shape.size() == 3 && std::all_of(shape.begin(), shape.end(), is_count);
    for (const char* name : {"network_calls", "state_channels", "batch_size", "bytes"})
      usable &= is_count(about.at(name));
    return usable && (classes.is_null() || is_count(classes)) && is_count(about.at("sampler").at("num_steps")) &&
           about["sampler"].at("name").is_string() && about.at("sha256").is_string();
  } catch (const json::exception&) {
    return false;
  }
}

// Throws InputError for a file that needs a newer runtime than this one.
inline void check_runtime(const fs::path& path, const json& about) {
  if (!about.contains("min_runtime_version")) return;
  const json& least = about["min_runtime_version"];
  int numbers[3] = {0, 0, 0};
  if (least.is_string()) std::sscanf(least.get<std::string>().c_str(), "%d.%d.%d", numbers, numbers + 1, numbers + 2);
  if (!std::lexicographical_compare(kRuntime, kRuntime + 3, numbers, numbers + 3)) return;
  throw InputError(text(path.string(), " needs a runtime of at least ", least.dump(),
                        ", in TensorFlow Lite's numbers. ", "Received: ", kRuntimeName));
}

// Reads and checks NAME.json of NAME.tflite.
inline json read_side_file(const fs::path& path) {
  fs::path side = fs::path(path).replace_extension(".json");
  for (const fs::path& file : {path, side}) {
    if (fs::is_regular_file(file)) continue;
    throw InputError(text(file.string(), " is missing: an export is NAME.tflite with NAME.json beside it"));
  }
  std::ifstream file(side);
  json about = json::parse(file, nullptr, false);
  if (about.is_object() &&
      (!about.contains("description_version") || about["description_version"] != kDescriptionVersion)) {
    bool is_older = !about.contains("description_version");
    throw InputError(text(side.string(), " must have description_version ", kDescriptionVersion,
                          ", the one that generate reads. Received: ",
                          is_older ? "none, as in older exports" : about["description_version"].dump().substr(0, 40)));
  }
  if (!is_usable(about)) {
    throw InputError(text(side.string(), " must be the description that the export wrote beside the file. ",
                          "Received: something else"));
  }
  check_runtime(path, about);
  return about;
}

// Reads NAME.tflite and compares it with its side file.
inline std::vector<char> read_content(const fs::path& path, const json& about) {
  std::ifstream file(path, std::ios::binary);
  std::vector<char> content(std::istreambuf_iterator<char>(file), {});
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  EVP_Digest(content.data(), content.size(), digest, &size, EVP_sha256(), nullptr);
  std::string hex;
  for (unsigned int i = 0; i < size; ++i) {
    char byte[3];
    std::snprintf(byte, sizeof byte, "%02x", digest[i]);
    hex += byte;
  }
  if (hex != about["sha256"]) {
    throw InputError(text(path.string(), " must be the file that ", path.stem().string(),
                          ".json describes: ", about["bytes"], " bytes of another sha256. Received: ", content.size(),
                          " bytes, truncated, altered or of another export"));
  }
  return content;
}
