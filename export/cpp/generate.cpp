// Generates pictures from an exported .tflite by LiteRT's C API.
//
//     generate model.tflite --seed 7 --out picture.png
//
// The random numbers, the schedule and the sampler are inside the file. Picture k depends only on seed k (and label k).

#include <unistd.h>

#include <chrono>
#include <iostream>
#include <regex>

#include "model.hpp"
#include "pictures.hpp"
#include "walks.hpp"

namespace {

constexpr int kMostThreads = 256;  // LiteRT itself sets no limit
const char* const kHelp = R"(usage: generate MODEL [flags]

Pictures from an exported .tflite.

  MODEL           NAME.tflite, with NAME.json beside it
  --seeds 0-15    one picture a seed: 7, 0-15, or 1,5,10-20
  --labels 3      classes, one a seed or one for all; seed modulo classes if not given
  --out grid.png  NAME.png, or a folder for a PNG a seed
  --threads 2     of LiteRT
  --steps N       steps of the sampler, in place of the file's
  --image A.png   a picture to edit, of the model's size, with one of
  --strength 0.5  0 .. 1, paint pictures like it, from the same one to any other
  --mask B.png    white = keep, black = paint anew
)";

struct Flags {
  fs::path model, out = "grid.png", image, mask;
  std::string seeds = "0-15", labels, threads = "2", steps, strength;
};

// Returns a path with the home folder in place of ~, which shells leave in --out=~/grid.png.
fs::path expanded(const std::string& path) {
  const char* home = std::getenv("HOME");
  return home != nullptr && (path == "~" || path.rfind("~/", 0) == 0) ? home + path.substr(1) : path;
}

Flags parsed(int count, char** arguments) {
  Flags flags;
  std::map<std::string, std::string*> texts = {{"--seeds", &flags.seeds},      {"--seed", &flags.seeds},
                                               {"--labels", &flags.labels},    {"--label", &flags.labels},
                                               {"--steps", &flags.steps},      {"--threads", &flags.threads},
                                               {"--strength", &flags.strength}};
  std::map<std::string, fs::path*> paths = {{"--out", &flags.out}, {"--image", &flags.image}, {"--mask", &flags.mask}};
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

// Parses numbers such as "0-15", "7" or "1,5,10-20"; a range includes both ends.
Numbers numbers(const std::string& flag, const std::string& given) {
  static const std::regex range("\\s*(-?\\d{1,12})(?:-(-?\\d{1,12}))?\\s*");
  Numbers found;
  for (size_t at = 0; at <= given.size();) {
    size_t end = std::min(given.find(',', at), given.size());
    std::string part = given.substr(at, end - at);
    std::smatch match;
    int64_t first = 0, last = -1;
    if (std::regex_match(part, match, range)) {
      first = std::stoll(match[1]), last = match[2].matched ? std::stoll(match[2]) : first;
    }
    if (last < first || last - first >= 1'000'000) {
      throw InputError(text(flag, " must look like 0-15 or 1,5,10-20. Received: '", given, "'"));
    }
    if (first < INT32_MIN || last > INT32_MAX) {
      throw InputError(text(flag, " must fit int32, ", INT32_MIN, " to ", INT32_MAX, ". Received: ", part));
    }
    for (int64_t number = first; number <= last; ++number) found.push_back(int32_t(number));
    at = end + 1;
  }
  return found;
}

int integer(const std::string& flag, const std::string& given, int most) {
  bool is_integer = std::regex_match(given, std::regex("-?\\d{1,9}"));
  if (!is_integer) throw InputError(text(flag, " must be an integer. Received: '", given, "'"));
  int number = std::stoi(given);
  if (number < 1 || number > most) throw InputError(text(flag, " must lie in 1 .. ", most, ". Received: ", number));
  return number;
}

void check_out(const fs::path& out) {
  bool is_file = out.extension() == ".png";
  if (!is_file && out.has_extension())
    throw InputError(text("--out must end in .png, or be a folder. Received: ", out.string()));
  if (fs::exists(out) && fs::is_directory(out) == is_file) {
    throw InputError(
        text("--out must be a .png file, or a folder. Received: ", out.string(), ", which is there and is not"));
  }
  fs::path folder = fs::absolute(is_file ? out.parent_path() / "x" : out / "x").parent_path();
  while (!fs::exists(folder)) folder = folder.parent_path();
  if (!fs::is_directory(folder) || access(folder.c_str(), W_OK) != 0) {
    throw InputError(text("--out must be in a folder that can be written to. Received: ", out.string()));
  }
}

// Checks labels and returns one a seed, or none for a model without classes.
Numbers checked_labels(Numbers labels, const Numbers& seeds, int classes, bool is_edit) {
  if (classes == 0 && !labels.empty()) throw InputError("--labels were given, but the model has no classes");
  if (classes == 0) return {};
  if (labels.empty() && is_edit)
    throw InputError(text("--labels is needed with --image: the model has ", classes, " classes"));
  if (labels.empty()) {
    for (int seed : seeds) labels.push_back((seed % classes + classes) % classes);
  }
  if (labels.size() == 1) labels.assign(seeds.size(), labels[0]);
  if (labels.size() != seeds.size()) {
    throw InputError(
        text("--labels must be one a seed, or one. Received: ", labels.size(), " for ", seeds.size(), " seeds"));
  }
  auto [least, most] = std::minmax_element(labels.begin(), labels.end());
  if (*least < 0 || *most >= classes) {
    throw InputError(text("--labels must lie in 0 .. ", classes - 1, ". Received: ", *least, " to ", *most));
  }
  return labels;
}

Picture of_size(const std::string& flag, const fs::path& path, const Model& model) {
  Picture picture = read_png(flag, path);
  if (picture.height == model.height && picture.width == model.width) return picture;
  throw InputError(text(flag, " must be ", model.height, " x ", model.width,
                        " pixels, as the model paints. Received: ", picture.height, " x ", picture.width));
}

// Reads the picture to edit, and its strength or its mask.
std::optional<Edit> read_edit(const Flags& flags, const Model& model) {
  if (flags.image.empty()) return {};
  Picture picture = of_size("--image", flags.image, model);
  if (model.channels != 1 && model.channels != 3) throw InputError("--image needs a model of grey or RGB pictures");
  Edit edit{model.channels == 1 ? grey(picture) : picture, 1, {}};
  if (flags.mask.empty()) {
    edit.strength = std::stod(flags.strength);
    return edit;
  }
  Picture mask = grey(of_size("--mask", flags.mask, model));
  int most = *std::max_element(mask.values.begin(), mask.values.end());
  if (most > 1 && most <= 127) {
    throw InputError(text("--mask must have white, above 127, where to keep the picture. Received: at most ", most));
  }
  for (uint8_t value : mask.values) edit.known.insert(edit.known.end(), model.channels, value > (most > 1 ? 127 : 0));
  return edit;
}

void check_edit(const Flags& flags) {
  for (const auto& [name, is_given] :
       {std::pair("--strength", !flags.strength.empty()), {"--mask", !flags.mask.empty()}}) {
    if (is_given && flags.image.empty()) throw InputError(text(name, " needs --image, the picture to edit"));
  }
  if (flags.image.empty()) return;
  if (flags.strength.empty() == flags.mask.empty())
    throw InputError("--image needs --strength or --mask, one of the two");
  if (flags.strength.empty()) return;
  bool is_number = std::regex_match(flags.strength, std::regex("\\d+\\.?\\d*|\\.\\d+"));
  if (!is_number || std::stod(flags.strength) > 1)
    throw InputError("--strength must lie in [0, 1]. Received: " + flags.strength);
}

std::string counted(int number, const std::string& what) { return text(number, " ", what, number == 1 ? "" : "s"); }

// Returns a description of the sampler and its steps, in words.
std::string way(const Model& model, const Walker& walker, int steps) {
  const std::map<std::string, std::string> samplers = {{"ancestral", "ancestral sampling"},
                                                       {"ddim", "DDIM"},
                                                       {"dpm_solver", "DPM-Solver++"},
                                                       {"heun", "Heun's method"},
                                                       {"predictor_corrector", "predictor-corrector sampling"}};
  const json& sampler = model.about["sampler"];
  std::string name = sampler["name"];
  int count = steps ? steps : sampler["num_steps"].get<int>();
  std::string words = counted(count, "step") + " of " + (samplers.count(name) ? samplers.at(name) : name);
  return walker.calls() == count ? words : words + ", " + counted(walker.calls(), "network call");
}

void run(const Flags& flags) {
  Numbers seeds = numbers("--seeds", flags.seeds), labels;
  if (!flags.labels.empty()) labels = numbers("--labels", flags.labels);
  int threads = integer("--threads", flags.threads, kMostThreads);
  int steps = flags.steps.empty() ? 0 : integer("--steps", flags.steps, 999'999'999);
  check_out(flags.out);
  check_edit(flags);
  Model model(flags.model, threads);
  std::optional<Edit> edit = read_edit(flags, model);
  labels = checked_labels(labels, seeds, model.classes, edit.has_value());
  Walker walker(model, steps, edit);
  int count = int(seeds.size()), done = 0, calls = (count + model.batch - 1) / model.batch * walker.calls();
  auto began = std::chrono::steady_clock::now();
  auto advance = [&](int more) {
    done += more;
    double spent = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
    if (!isatty(STDERR_FILENO) && done != calls) return;
    std::fprintf(stderr, "\r%d/%d network calls, %.2f ms a call, %.1f s%s", done, calls, 1e3 * spent / done, spent,
                 done == calls ? "\n" : "");
  };
  std::vector<Picture> pictures;
  for (int first = 0; first < count; first += model.batch) {
    int taken = std::min(model.batch, count - first);
    Batch batch;
    for (int k = 0; k < model.batch; ++k) {
      batch.seeds.push_back(seeds[first + k % taken]);
      if (model.classes) batch.labels.push_back(labels[first + k % taken]);
    }
    std::vector<Picture> painted = walker.paint(batch, advance);
    pictures.insert(pictures.end(), painted.begin(), painted.begin() + taken);
  }
  if (flags.out.extension() == ".png") {
    save(flags.out, grid(pictures));
  } else {
    for (int k = 0; k < count; ++k) save(flags.out / text(seeds[k], ".png"), pictures[k]);
  }
  std::cout << counted(count, "picture") << " in " << flags.out.string() << ", each in " << way(model, walker, steps)
            << "\n";
}

}  // namespace

int main(int count, char** arguments) {
  try {
    run(parsed(count, arguments));
  } catch (const std::exception& error) {
    std::cerr << "generate: " << error.what() << "\n";
    return 1;
  }
}
