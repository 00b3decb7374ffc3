// Generates pictures from an exported .tflite by LiteRT's C API.
//
//     generate model.tflite --seed 7 --out picture.png
//
// The random numbers, the schedule and the sampler are inside the file. Picture k depends only on seed k (and label k).

#include <unistd.h>

#include <chrono>
#include <csignal>
#include <iostream>

#include "flags.hpp"
#include "model.hpp"
#include "pictures.hpp"
#include "walks.hpp"

namespace {

constexpr int kMostThreads = 256;      // LiteRT itself sets no limit
constexpr int kInterruptStatus = 130;  // of a program that Ctrl-C ends, as shells count

volatile std::sig_atomic_t is_interrupted = 0;

// The painting was interrupted.
struct Interrupted {
  std::string written = {};
};

// Lets Ctrl-C stop the painting after a call of the network; a second one ends the program at once.
void stop_when_interrupted() {
  auto before = std::signal(SIGINT, [](int signal) {
    std::signal(signal, SIG_DFL);
    is_interrupted = 1;
  });
  if (before == SIG_IGN) std::signal(SIGINT, SIG_IGN);  // as nohup and & of a script ask for
}

void check_out(const fs::path& out) {
  bool is_png = out.extension() == ".png";
  auto refuse = [&](const char* expected, const std::string& why = "") {
    throw InputError(text("--out must ", expected, ". Received: ", out.string(), why));
  };
  if (!is_png && out.has_extension()) refuse("end in .png, or be a folder");
  std::error_code ignored;
  if (fs::exists(out, ignored) && fs::is_directory(out, ignored) == is_png) {
    refuse("be a .png file, or a folder", ", which is there and is not");
  }
  if (fs::is_symlink(out, ignored) && !fs::exists(out, ignored)) refuse("not be a link to nothing");
  fs::path folder = fs::absolute(is_png ? out.parent_path() / "x" : out / "x").parent_path();
  while (fs::symlink_status(folder, ignored).type() == fs::file_type::not_found) folder = folder.parent_path();
  if (access((folder / ".").c_str(), W_OK | X_OK) != 0) {
    refuse("be in a folder that can be written to", text(" (", folder.string(), ": ", std::strerror(errno), ")"));
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
  Picture picture = read_png(flag, path, model.height, model.width);
  return channels == 1 ? grey(picture) : picture;
}

// Reads the picture to edit, and its strength or its mask.
std::optional<Edit> read_edit(const Flags& flags, const Model& model) {
  if (!flags.variations.empty()) {
    Edit edit{opened("--variations", flags.variations, model, model.channels)};
    if (!flags.strength.empty()) edit.strength = fraction("--strength", flags.strength);
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
std::string way(const Model& model, const std::optional<int>& num_steps) {
  const std::map<std::string, std::string> samplers = {{"ancestral", "ancestral sampling"},
                                                       {"ddim", "DDIM"},
                                                       {"dpm_solver", "DPM-Solver++"},
                                                       {"heun", "Heun's method"},
                                                       {"predictor_corrector", "predictor-corrector sampling"}};
  const json& sampler = model.about["sampler"];
  std::string name = sampler["name"];
  int steps = num_steps ? *num_steps : sampler["num_steps"].get<int>(), calls = model.about["network_calls"];
  std::string words = counted(steps, "step") + " of " + (samplers.count(name) ? samplers.at(name) : name);
  return num_steps || calls == steps ? words : words + ", " + counted(calls, "network call");
}

// Shows the calls of the network on the terminal, and notices there that the painting is to stop.
class Progress {
 public:
  explicit Progress(long calls) : calls_(calls) {}

  void advance(int more) {
    done_ += more;
    double spent = std::chrono::duration<double>(std::chrono::steady_clock::now() - began_).count();
    bool is_end = done_ == calls_, is_shown = isatty(STDERR_FILENO);
    if (is_shown || is_end) {
      std::fprintf(stderr, "\r%ld/%ld network calls, %.2f ms a call, %.1f s%s", done_, calls_, 1e3 * spent / done_,
                   spent, is_end || is_interrupted ? "\n" : "");
    }
    if (is_interrupted) throw Interrupted();
  }

 private:
  const long calls_;
  long done_ = 0;
  const std::chrono::steady_clock::time_point began_ = std::chrono::steady_clock::now();
};

// Paints the pictures of seeds and writes them: each as soon as it is there into a folder, or all in a grid at the end.
void paint(const fs::path& out, const Numbers& seeds, const Numbers& labels, Walker& walker, const Model& model) {
  const int count = int(seeds.size());
  const bool is_grid = out.extension() == ".png";
  Progress progress(long((count + model.batch - 1) / model.batch) * walker.calls());
  std::vector<Picture> pictures;
  int first = 0;
  try {
    for (; first < count; first += model.batch) {
      if (is_interrupted) throw Interrupted();  // while no network was called
      int taken = std::min(model.batch, count - first);
      Batch batch;
      for (int k = 0; k < model.batch; ++k) {
        batch.seeds.push_back(seeds[first + k % taken]);
        if (model.classes) batch.labels.push_back(labels[first + k % taken]);
      }
      std::vector<Picture> painted = walker.paint(batch, [&](int more) { progress.advance(more); });
      if (is_grid) pictures.insert(pictures.end(), painted.begin(), painted.begin() + taken);
      for (int k = 0; !is_grid && k < taken; ++k) save(out / text(seeds[first + k], ".png"), painted[k]);
    }
  } catch (Interrupted& stopped) {
    const std::string number = first == 0 ? "nothing" : counted(first, "picture");
    stopped.written = is_grid ? "nothing written" : text(number, " written in ", out.string());
    throw;
  }
  if (is_grid) save(out, grid(pictures));
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
  paint(flags.out, seeds, labels, walker, model);
  std::cout << counted(int(seeds.size()), "picture") << " in " << flags.out.string() << ", each in "
            << way(model, num_steps) << "\n";
}

}  // namespace

int main(int count, char** arguments) {
  stop_when_interrupted();
  try {
    run(parsed(count, arguments));
  } catch (const Interrupted& stopped) {
    std::cerr << "generate: interrupted; " << stopped.written << "\n";
    return kInterruptStatus;
  } catch (const std::exception& error) {
    std::cerr << "generate: " << error.what() << "\n";
    return 1;
  }
}
