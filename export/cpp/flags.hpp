// The flags of the command line.

#pragma once

#include <charconv>
#include <cstdlib>
#include <iostream>
#include <map>
#include <string_view>

#include "side_file.hpp"

constexpr int64_t kMostInteger = 999'999'999;  // in absolute value
constexpr int64_t kMostNumbers = 100'000;      // of a flag such as --seeds, in all

const char* const kHelp = R"(usage: generate MODEL [flags]

Pictures from an exported .tflite.

  MODEL               NAME.tflite, with NAME.json beside it
  --seeds 0-15        one picture a seed: 7, 0-15, or 1,5,10-20; 0-7 of an edit if not given
  --labels 3          classes, one a seed or one for all; seed modulo classes if not given
  --out grid.png      NAME.png, or a folder for a PNG a seed
  --num_steps N       steps, at most T; the file's if not given
  --variations A.png  a picture of the model's size: paint pictures like it
  --strength 0.5      of --variations: 0 = the picture, 1 = another one
  --inpaint A.png     a picture of the model's size: paint the part that --mask leaves open
  --mask B.png        of --inpaint: white = keep, black = paint
  --jump_length 10    of --inpaint: steps to go back, so that the new fits
  --resamplings 5     of --inpaint: how often each stretch of steps is taken, at most 1000
  --threads 2         of LiteRT
)";

struct Flags {
  fs::path model, out = "grid.png", variations, inpaint, mask;
  std::string seeds, labels, threads = "2", num_steps, strength, jump_length, resamplings;
};

// Returns a path with the home folder in place of ~, which shells leave in --out=~/grid.png.
inline fs::path expanded(const std::string& path) {
  const char* home = std::getenv("HOME");
  return home != nullptr && (path == "~" || path.rfind("~/", 0) == 0) ? home + path.substr(1) : path;
}

inline Flags parsed(int count, char** arguments) {
  Flags flags;
  std::map<std::string, std::string*> texts = {{"--seeds", &flags.seeds},
                                               {"--seed", &flags.seeds},
                                               {"--labels", &flags.labels},
                                               {"--label", &flags.labels},
                                               {"--threads", &flags.threads},
                                               {"--num_steps", &flags.num_steps},
                                               {"--strength", &flags.strength},
                                               {"--jump_length", &flags.jump_length},
                                               {"--resamplings", &flags.resamplings}};
  std::map<std::string, fs::path*> paths = {{"--out", &flags.out},
                                            {"--variations", &flags.variations},
                                            {"--inpaint", &flags.inpaint},
                                            {"--mask", &flags.mask}};
  for (int i = 1; i < count; ++i) {
    std::string argument = arguments[i];
    if (argument == "--help" || argument == "-h") {
      std::cout << kHelp;
      std::exit(0);
    }
    if (argument[0] != '-') {
      if (!flags.model.empty()) throw InputError("one MODEL is painted at a time. Received: a second one, " + argument);
      flags.model = expanded(argument);
      continue;
    }
    size_t end = argument.find('=');
    std::string name = argument.substr(0, end);
    bool is_path = paths.count(name) > 0;
    if (!is_path && texts.count(name) == 0) throw InputError("--help lists the flags. Received: " + name);
    if (end == std::string::npos && ++i == count) throw InputError(name + " needs a value");
    std::string value = end == std::string::npos ? arguments[i] : argument.substr(end + 1);
    if (value.empty()) throw InputError(name + " needs a value");
    if (is_path) {
      *paths[name] = expanded(value);
    } else {
      *texts[name] = value;
    }
  }
  if (flags.model.empty()) throw InputError("MODEL is needed: NAME.tflite, with NAME.json beside it");
  return flags;
}

inline std::string trimmed(const std::string& given) {
  size_t from = given.find_first_not_of(" \t\n");
  return from == std::string::npos ? "" : given.substr(from, given.find_last_not_of(" \t\n") - from + 1);
}

inline std::string quoted(const std::string& given) { return text("'", given, "'").substr(0, 100); }

// Reads an integer at the front of `rest` and removes it.
inline bool take(std::string_view& rest, int64_t& number) {
  auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), number);
  rest.remove_prefix(end - rest.data());
  return error == std::errc();
}

// Parses numbers such as "0-15", "7" or "1,5,10-20"; a range includes both ends.
inline Numbers numbers(const std::string& flag, const std::string& given) {
  std::vector<std::pair<int64_t, int64_t>> ranges;
  int64_t total = 0;
  for (size_t at = 0, end = 0; at <= given.size(); at = end + 1) {
    end = std::min(given.find(',', at), given.size());
    const std::string part = trimmed(given.substr(at, end - at));
    std::string_view rest = part;
    int64_t first = 0, last = 0;
    bool is_number = take(rest, first);
    last = first;
    if (is_number && !rest.empty() && rest[0] == '-') {
      rest.remove_prefix(1);
      is_number = take(rest, last);
    }
    if (!is_number || !rest.empty() || last < first) {
      throw InputError(text(flag, " must look like 0-15 or 1,5,10-20. Received: ", quoted(given)));
    }
    if (first < INT32_MIN || last > INT32_MAX) {
      throw InputError(text(flag, " must fit int32, ", INT32_MIN, " to ", INT32_MAX, ". Received: ", part));
    }
    ranges.emplace_back(first, last);
    total += last - first + 1;
  }
  if (total > kMostNumbers) {
    throw InputError(text(flag, " must be at most ", kMostNumbers, " numbers in all. Received: ", total));
  }
  Numbers found;
  for (auto [number, last] : ranges) {
    for (; number <= last; ++number) found.push_back(int32_t(number));
  }
  return found;
}

inline int integer(const std::string& flag, const std::string& given) {
  std::string_view rest = given;
  int64_t number = 0;
  if (!take(rest, number) || !rest.empty() || std::abs(number) > kMostInteger) {
    throw InputError(text(flag, " must be an integer of at most 9 digits. Received: ", quoted(given)));
  }
  return int(number);
}

inline double fraction(const std::string& flag, const std::string& given) {
  char* end = nullptr;
  double number = std::strtod(given.c_str(), &end);
  if (*end != 0 || given.find_first_not_of("0123456789.e-") != std::string::npos) {
    throw InputError(text(flag, " must be a number such as 0.5. Received: ", quoted(given)));
  }
  if (number < 0 || number > 1) throw InputError(text(flag, " must lie in [0, 1]. Received: ", given));
  return number;
}

// Checks that the flags of edits belong together.
inline void check_edit(const Flags& flags) {
  bool varies = !flags.variations.empty(), inpaints = !flags.inpaint.empty();
  if (varies && inpaints) throw InputError("--variations and --inpaint exclude each other. Received: both");
  if (!flags.strength.empty() && !varies) throw InputError("--strength belongs to --variations. Received: none");
  for (const auto& [name, is_given] : {std::pair("--mask", !flags.mask.empty()),
                                       {"--jump_length", !flags.jump_length.empty()},
                                       {"--resamplings", !flags.resamplings.empty()}}) {
    if (is_given && !inpaints) throw InputError(text(name, " belongs to --inpaint. Received: none"));
  }
  if (inpaints && flags.mask.empty()) throw InputError("--inpaint needs --mask, an image file. Received: none");
  if (!flags.strength.empty()) fraction("--strength", flags.strength);
}
