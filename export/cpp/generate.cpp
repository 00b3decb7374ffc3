// Generates pictures from an exported .tflite by LiteRT's C API.
//
//     generate model.tflite --seed 7 --out picture.png
//
// The random numbers, the schedule and the sampler are inside the file. Picture k depends only on seed k (and label k).

#include <unistd.h>

#include <chrono>
#include <iostream>

#include "flags.hpp"
#include "model.hpp"
#include "pictures.hpp"
#include "walks.hpp"

namespace {

constexpr int kMostThreads = 256;  // LiteRT itself sets no limit

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
    throw InputError(text("--labels are needed here: the model has ", classes, " classes"));
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

// Reads a picture of the model's size and colours, or a mask of that size, which is grey.
Picture opened(const std::string& flag, const fs::path& path, const Model& model, int channels) {
  if (channels != 1 && channels != 3) {
    throw InputError(text(flag, " needs a model of grey or RGB pictures. Received: one of ", channels, " channels"));
  }
  Picture picture = read_png(flag, path);
  if (picture.height != model.height || picture.width != model.width) {
    throw InputError(text(flag, " must be ", model.height, " x ", model.width,
                          " pixels, as the model paints. Received: ", picture.height, " x ", picture.width));
  }
  return channels == 1 ? grey(picture) : picture;
}

// Reads the picture to edit, and its strength or its mask.
std::optional<Edit> read_edit(const Flags& flags, const Model& model) {
  if (!flags.variations.empty()) {
    Edit edit{opened("--variations", flags.variations, model, model.channels)};
    if (!flags.strength.empty()) edit.strength = fraction(flags.strength);
    return edit;
  }
  if (flags.inpaint.empty()) return {};
  Edit edit{opened("--inpaint", flags.inpaint, model, model.channels)};
  Picture mask = opened("--mask", flags.mask, model, 1);
  int most = *std::max_element(mask.values.begin(), mask.values.end());
  if (most > 1 && most <= 127) {
    throw InputError(text("--mask must have white, above 127, where to keep the picture. Received: at most ", most));
  }
  for (uint8_t value : mask.values) edit.known.insert(edit.known.end(), model.channels, value > (most > 1 ? 127 : 0));
  if (!flags.jump_length.empty()) edit.jump_length = integer("--jump_length", flags.jump_length);
  if (!flags.resamplings.empty()) edit.resamplings = integer("--resamplings", flags.resamplings);
  return edit;
}

std::string counted(int number, const std::string& what) { return text(number, " ", what, number == 1 ? "" : "s"); }

// Returns a description of the sampler and its steps, in words.
std::string way(const Model& model, const Walker& walker, const std::optional<int>& num_steps) {
  const std::map<std::string, std::string> samplers = {{"ancestral", "ancestral sampling"},
                                                       {"ddim", "DDIM"},
                                                       {"dpm_solver", "DPM-Solver++"},
                                                       {"heun", "Heun's method"},
                                                       {"predictor_corrector", "predictor-corrector sampling"}};
  const json& sampler = model.about["sampler"];
  std::string name = sampler["name"];
  int count = num_steps ? *num_steps : sampler["num_steps"].get<int>();
  std::string words = counted(count, "step") + " of " + (samplers.count(name) ? samplers.at(name) : name);
  return walker.calls() == count ? words : words + ", " + counted(walker.calls(), "network call");
}

void run(const Flags& flags) {
  check_edit(flags);
  bool is_edit = !flags.variations.empty() || !flags.inpaint.empty();
  Numbers seeds = numbers("--seeds", !flags.seeds.empty() ? flags.seeds : is_edit ? "0-7" : "0-15"), labels;
  if (!flags.labels.empty()) labels = numbers("--labels", flags.labels);
  int threads = integer("--threads", flags.threads);
  if (threads < 1 || threads > kMostThreads) {
    throw InputError(text("--threads must lie in 1 .. ", kMostThreads, ". Received: ", threads));
  }
  std::optional<int> num_steps;
  if (!flags.num_steps.empty()) num_steps = integer("--num_steps", flags.num_steps);
  check_out(flags.out);
  Model model(flags.model, threads);
  if (model.channels > 4) {
    throw InputError(text("a PNG has 1 to 4 channels. Received: a model of pictures with ", model.channels));
  }
  std::optional<Edit> edit = read_edit(flags, model);
  labels = checked_labels(labels, seeds, model.classes, is_edit);
  Walker walker(model, num_steps, edit);
  int count = int(seeds.size());
  long done = 0, calls = long((count + model.batch - 1) / model.batch) * walker.calls();
  auto began = std::chrono::steady_clock::now();
  auto advance = [&](int more) {
    done += more;
    double spent = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
    if (!isatty(STDERR_FILENO) && done != calls) return;
    std::fprintf(stderr, "\r%ld/%ld network calls, %.2f ms a call, %.1f s%s", done, calls, 1e3 * spent / done, spent,
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
  std::cout << counted(count, "picture") << " in " << flags.out.string() << ", each in "
            << way(model, walker, num_steps) << "\n";
}

}  // namespace

int main(int count, char** arguments) {
  const char* const other = "MODEL's .json must be the description that the export wrote. Received: ";
  try {
    run(parsed(count, arguments));
  } catch (const json::exception& error) {
    std::cerr << "generate: " << other << error.what() << "\n";
    return 1;
  } catch (const std::out_of_range&) {  // of a schedule
    std::cerr << "generate: " << other << "a t that is not in its schedule\n";
    return 1;
  } catch (const std::exception& error) {
    std::cerr << "generate: " << error.what() << "\n";
    return 1;
  }
}
