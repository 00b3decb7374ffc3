// NAME.json, which the export writes beside NAME.tflite and which describes it.

#pragma once

#include <openssl/evp.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

using nlohmann::json;
namespace fs = std::filesystem;

using Numbers = std::vector<int32_t>;

constexpr int kDescriptionVersion = 3;       // its fields have other meanings in other versions
constexpr std::array kRuntime = {2, 21, 0};  // what LiteRT 2.3.0 counts as among the versions of TensorFlow Lite

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

// Returns the numbers of a version such as "2.13.0", or zeros.
inline std::array<int, 3> version_of(const json& version) {
  std::array<int, 3> numbers = {0, 0, 0};
  const std::string given = version.is_string() ? version.get<std::string>() : "";
  char rest;
  int found = std::sscanf(given.c_str(), "%3d.%3d.%3d%c", &numbers[0], &numbers[1], &numbers[2], &rest);
  return found == 3 ? numbers : std::array{0, 0, 0};
}

// Returns whether these are the rows of a walk: columns of as many numbers as there are calls.
inline bool are_steps(const json& steps, size_t calls) {
  for (const char* name : {"t", "from_x0", "from_xt", "noise_std"})
    if (!steps.at(name).is_array()) return false;
  for (const json& column : steps) {
    if (!column.is_array()) continue;
    if (column.size() != calls) return false;
    for (const json& value : column)
      if (!value.is_number() || std::abs(value.get<double>()) > 1e30) return false;
  }
  const json& t = steps["t"];
  return std::all_of(t.begin(), t.end(), [](const json& value) { return value.is_number_unsigned(); });
}

// Returns whether alpha_bar falls from less than 1 to 0 or more.
inline bool is_schedule(const json& schedule) {
  double before = 1;
  const json& alpha_bars = schedule.at("alpha_bars");
  for (const json& value : alpha_bars) {
    if (!value.is_number() || value.get<double>() >= before || value.get<double>() < 0) return false;
    before = value.get<double>();
  }
  return alpha_bars.is_array() && !alpha_bars.empty();
}

// Returns whether a side file has the entries that every walk needs.
inline bool is_usable(const json& about) {
  try {
    const json& shape = about.at("image_shape");
    const json& classes = about.at("num_classes");
    if (version_of(about.at("min_runtime_version")) == std::array{0, 0, 0}) return false;
    bool usable = shape.size() == 3 && std::all_of(shape.begin(), shape.end(), is_count);
    for (const char* name : {"network_calls", "state_channels", "batch_size", "bytes"})
      usable &= is_count(about.at(name));
    return usable && (classes.is_null() || is_count(classes)) && is_count(about.at("sampler").at("num_steps")) &&
           about["sampler"].at("name").is_string() && about.at("sha256").is_string() &&
           are_steps(about.at("steps"), about["network_calls"].get<size_t>()) && is_schedule(about.at("schedule"));
  } catch (const json::exception&) {
    return false;
  }
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

// Throws InputError for a NAME.tflite that is not the file that the side file describes.
inline void check_content(const fs::path& path, const json& about) {
  std::ifstream file(path, std::ios::binary);
  std::vector<char> block(1 << 20);
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  EVP_DigestInit_ex(context, EVP_sha256(), nullptr);
  do {
    file.read(block.data(), std::streamsize(block.size()));
    EVP_DigestUpdate(context, block.data(), size_t(file.gcount()));
  } while (file);
  EVP_DigestFinal_ex(context, digest, &size);
  EVP_MD_CTX_free(context);
  std::string hex;
  for (unsigned int i = 0; i < size; ++i) {
    char byte[3];
    std::snprintf(byte, sizeof byte, "%02x", digest[i]);
    hex += byte;
  }
  if (hex == about["sha256"]) return;
  throw InputError(text(
      path.string(), " must be the file that ", path.stem().string(), ".json describes: ", about["bytes"],
      " bytes of another sha256. Received: ", fs::file_size(path), " bytes, truncated, altered or of another export"));
}
