// From noise, or from a picture, to pictures: the walks over the signatures of a file.

#pragma once

#include <functional>
#include <optional>

#include "model.hpp"
#include "pictures.hpp"
#include "steps.hpp"

// The inputs of one call; labels are empty for a model without classes.
struct Batch {
  Numbers seeds, labels;
};

// A picture of which to paint variations, or the unknown pixels.
struct Edit {
  Picture picture;
  double strength = 0.5;
  std::vector<bool> known = {};         // of each value of the picture; empty = variations
  std::optional<int> jump_length = {};  // none = 10 steps, or all but one if there are fewer
  int resamplings = 5;
};

class Walker {
 public:
  using Advance = std::function<void(int)>;  // gets the number of network calls made

  // Throws InputError where the file has not what these steps (none = its own) or this edit need.
  Walker(Model& model, const std::optional<int>& num_steps, const std::optional<Edit>& edit)
      : model_(model), edit_(edit), inpaints_(edit && !edit->known.empty()) {
    bool is_free = num_steps || edit;
    if (is_free) check_freedom(edit ? "variations and inpainting need" : "--num_steps needs");
    bool steps = model.has("start") && model.has("step") && model.has("finish");
    by_steps_ = !is_free && steps && (model.has("noise") || !model["step"].takes("noise"));
    by_denoise_ = !by_steps_ && model.has("denoise") && model.has("noise");
    bool generates = model.has("generate") && (model.has("start") || !model["generate"].takes("x"));
    if (!by_steps_ && !by_denoise_ && !generates) {
      throw InputError(text(model.path.string(),
                            " must have the signatures finish, start, step; or denoise, noise; or ",
                            "generate. Received: ", model.names()));
    }
    if (!by_denoise_) return;
    Schedule schedule(model.about);
    rows_ = num_steps ? new_rows(model.about, schedule, *num_steps) : file_rows(model.about, schedule);
    if (inpaints_) rows_ = resampled(rows_, schedule, edit->jump_length, edit->resamplings);
    if (!edit || inpaints_) return;
    rows_ = last_rows(rows_, schedule, edit->strength);
    if (rows_.empty()) {
      started_ = 1;
    } else if (rows_[0].t != schedule.timesteps.back()) {
      started_ = schedule.alpha_bar(rows_[0].t);
    }
  }

  // Returns the number of network calls for a batch.
  int calls() const { return by_denoise_ ? int(rows_.size()) : model_.about["network_calls"].get<int>(); }

  std::vector<Picture> paint(const Batch& batch, const Advance& advance) {
    Numbers image;
    try {
      image = by_denoise_ ? denoise(batch, advance) : by_steps_ ? step(batch, advance) : generate(batch, advance);
    } catch (const std::runtime_error& error) {
      throw InputError(text(model_.path.string(), " cannot be run by LiteRT: ", error.what()));
    }
    std::vector<Picture> pictures;
    size_t size = image.size() / model_.batch;
    for (auto from = image.begin(); from != image.end(); from += size) {
      pictures.push_back({model_.height, model_.width, model_.channels, {from, from + size}});
    }
    return pictures;
  }

 private:
  // Checks that the file can be walked in other steps than its own.
  void check_freedom(const std::string& purpose) const {
    for (const char* name : {"denoise", "noise"}) {
      if (model_.has(name)) continue;
      throw InputError(text(purpose, " the signatures denoise and noise. Received: a file without ", name));
    }
    std::string sampler = model_.about["sampler"]["name"];
    if (sampler == "ancestral" || sampler == "ddim") return;
    throw InputError(text(purpose, " a file of the sampler ancestral or ddim. Received: one of ", sampler));
  }

  Signature& call(const char* name, const Batch& batch, const std::vector<float>& x = {}, int index = 0, int of = 0) {
    Signature& signature = model_[name];
    if (signature.takes("noise")) signature.with("noise", drawn(batch, 1, index));
    signature.with("seed", batch.seeds).with("index", Numbers{index}).with("stream", Numbers{of});
    if (!batch.labels.empty()) signature.with("label", batch.labels);
    if (!x.empty()) signature.with("x", x);
    model_.run(signature);
    return signature;
  }

  // Returns standard normal noise: stream 0 = x_T, 1 = of a row, 2 = on known pixels, 3 = on the way back.
  std::vector<float> drawn(const Batch& batch, int stream, int index) {
    return call("noise", batch, {}, index, stream).output<float>("noise");
  }

  Numbers generate(const Batch& batch, const Advance& advance) {
    std::vector<float> x;
    if (model_["generate"].takes("x")) x = call("start", batch).output<float>("x");
    Numbers image = call("generate", batch, x).output<int32_t>("image");
    advance(calls());
    return image;
  }

  Numbers step(const Batch& batch, const Advance& advance) {
    std::vector<float> x = call("start", batch).output<float>("x");
    for (int index = 0; index < calls(); ++index) {
      x = call("step", batch, x, index).output<float>("x");
      advance(1);
    }
    return call("finish", batch, x).output<int32_t>("image");
  }

  Numbers denoise(const Batch& batch, const Advance& advance) {
    Values x = first(batch), memory = x;
    for (int index = 0; index < calls(); ++index) {
      const Row& row = rows_[index];
      auto [x_0, std] = denoised(batch, x, row);
      std::vector<float> z = row.noise_std != 0 ? drawn(batch, 1, index) : std::vector<float>(x.size());
      for (size_t i = 0; i < x.size(); ++i) {
        double x_t = x[i], m = memory[i];
        x[i] = row.from_x0 * x_0[i] + row.from_xt * x_t + row.from_memory * m + std[i] * z[i];
        memory[i] = row.memory_from_x0 * x_0[i] + row.memory_from_xt * x_t + row.memory_from_memory * m;
      }
      if (inpaints_) repaint(batch, x, index);
      advance(1);
    }
    Numbers image;
    for (double value : x)
      image.push_back(int(std::fmin(std::fmax(std::nearbyint((value + 1) * 127.5), 0), 255)));  // NaN = 0
    return image;
  }

  // Returns x before the first row: noise, or the picture to vary with noise up to that level.
  Values first(const Batch& batch) {
    std::vector<float> noise = drawn(batch, 0, 0);
    Values x(noise.begin(), noise.end());
    if (started_) noised(x, *started_, noise);
    return x;
  }

  // Sets x, or its known values, to the picture with noise up to a level.
  void noised(Values& x, double alpha_bar, const std::vector<float>& noise) const {
    const std::vector<uint8_t>& values = edit_->picture.values;
    for (size_t i = 0; i < x.size(); ++i) {
      if (inpaints_ && !edit_->known[i % values.size()]) continue;
      x[i] = std::sqrt(alpha_bar) * (values[i % values.size()] / 127.5 - 1) + std::sqrt(1 - alpha_bar) * noise[i];
    }
  }

  // RePaint after a row (Lugmayr et al. 2022): known pixels at the level reached, then the noise of the way back.
  void repaint(const Batch& batch, Values& x, int index) {
    const Row& row = rows_[index];
    noised(x, row.reached, drawn(batch, 2, index));
    if (row.climbed == row.reached) return;
    double kept = row.climbed / row.reached;
    std::vector<float> z = drawn(batch, 3, index);
    for (size_t i = 0; i < x.size(); ++i) x[i] = std::sqrt(kept) * x[i] + std::sqrt(1 - kept) * z[i];
  }

  // Returns the predicted picture, clipped, and the standard deviation of the row's noise for each value.
  std::pair<Values, Values> denoised(const Batch& batch, const Values& x, const Row& row) {
    model_["denoise"].with("t", Numbers(model_.batch, row.t));
    Signature& called = call("denoise", batch, {x.begin(), x.end()});
    std::vector<float> x0 = called.output<float>("x0");
    Values x_0(x0.begin(), x0.end()), std(x0.size(), row.noise_std);
    size_t size = x_0.size() / model_.batch;
    for (auto from = x_0.begin(); from != x_0.end(); from += size) clip(from, from + size);
    if (!row.is_learned) return {x_0, std};
    std::vector<float> fraction = called.output<float>("fraction");
    double low = row.log_variance_low, high = row.log_variance_high;
    for (size_t i = 0; i < std.size(); ++i) {
      double log_variance = low + (fraction[i] + 1.0) / 2 * (high - low);
      std[i] *= std::exp(0.5 * std::clamp(log_variance, low - 20, high + 20));  // as far as the sampler goes
    }
    return {x_0, std};
  }

  // Clips the values of one picture to [-1, 1], by dynamic thresholding (Saharia et al. 2022, section 2.3), or not.
  void clip(Values::iterator from, Values::iterator to) const {
    const json& way = model_.about["sampler"]["clip"];
    if (way == false) return;
    double limit = 1;
    if (way == "dynamic") {
      Values sizes(from, to);
      for (double& value : sizes) value = std::isnan(value) ? 0 : std::abs(value);
      auto quantile = sizes.begin() + size_t(std::ceil(0.995 * double(sizes.size() - 1)));
      std::nth_element(sizes.begin(), quantile, sizes.end());
      limit = std::max(*quantile, 1.0);
    }
    for (auto value = from; value != to; ++value) *value = std::clamp(*value, -limit, limit) / limit;
  }

  Model& model_;
  const std::optional<Edit>& edit_;
  bool inpaints_, by_denoise_ = false, by_steps_ = false;
  std::optional<double> started_;  // alpha_bar of the picture's noise before the first row; none = noise alone
  Rows rows_;
};
