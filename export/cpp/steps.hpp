// The steps of a walk by `denoise`: those that the side file lists, another number of them, and those of an edit.

#pragma once

#include <cmath>
#include <map>
#include <optional>

#include "side_file.hpp"

using Values = std::vector<double>;

constexpr int kMostResamplings = 1000;

// A call of the network on the way: the timestep t and the coefficients by which x follows from it.
struct Row {
  int t = 0;
  double from_x0 = 0, from_xt = 0, noise_std = 0;
  double from_memory = 0, memory_from_x0 = 0, memory_from_xt = 0, memory_from_memory = 0;
  bool is_learned = false;  // the variance, whose logarithm lies between these
  double log_variance_low = 0, log_variance_high = 0;
  double reached = 1, climbed = 1;  // alpha_bar after the row, and after inpainting has added noise again
};

using Rows = std::vector<Row>;

// alpha_bar at each timestep, increasing.
class Schedule {
 public:
  explicit Schedule(const json& about) : alpha_bars(about["schedule"]["alpha_bars"].get<Values>()) {
    const json listed = about["schedule"].value("timesteps", json());
    if (!listed.is_null()) timesteps = listed.get<Numbers>();
    for (size_t t = timesteps.size(); t < alpha_bars.size(); ++t) timesteps.push_back(int(t));
  }
  int size() const { return int(timesteps.size()); }
  int index_of(int t) const { return int(std::lower_bound(timesteps.begin(), timesteps.end(), t) - timesteps.begin()); }
  double alpha_bar(int t) const { return alpha_bars[index_of(t)]; }

  Values alpha_bars;
  Numbers timesteps;
};

// Sets the levels that the rows reach.
inline Rows with_levels(Rows rows, const Schedule& schedule) {
  for (size_t i = 0; i < rows.size(); ++i) {
    rows[i].reached = rows[i].climbed = i + 1 < rows.size() ? schedule.alpha_bar(rows[i + 1].t) : 1;
  }
  return rows;
}

// Returns the rows that the side file lists.
inline Rows file_rows(const json& about, const Schedule& schedule) {
  const json& steps = about["steps"];
  Rows rows(steps["t"].size());
  auto fill = [&](const char* name, double Row::* value) {
    if (!steps.contains(name) || steps[name].is_null()) return false;
    for (size_t i = 0; i < rows.size(); ++i) rows[i].*value = steps[name][i];
    return true;
  };
  fill("from_x0", &Row::from_x0);
  fill("from_xt", &Row::from_xt);
  fill("noise_std", &Row::noise_std);
  fill("from_memory", &Row::from_memory);
  fill("memory_from_x0", &Row::memory_from_x0);
  fill("memory_from_xt", &Row::memory_from_xt);
  fill("memory_from_memory", &Row::memory_from_memory);
  fill("log_variance_low", &Row::log_variance_low);
  bool is_learned = fill("log_variance_high", &Row::log_variance_high);
  for (size_t i = 0; i < rows.size(); ++i) {
    rows[i].t = steps["t"][i];
    rows[i].is_learned = is_learned;
  }
  return with_levels(rows, schedule);
}

// Returns which of T steps to take: evenly spaced, counted from the end (Lin et al. 2023, table 2).
inline Numbers evenly_spaced(int count, int total) {
  if (count < 1 || count > total) throw InputError(text("--num_steps must lie in 1 .. ", total, ". Received: ", count));
  Numbers kept;
  for (int i = 1, least = 0; i <= count; ++i) {
    int step = i == count ? total - 1 : int(std::nearbyint(i * (double(total) / count))) - 1;
    step = std::max(step, least);
    least = step + 1;
    kept.push_back(std::min(step, total - 1 - (count - i)));
  }
  return kept;
}

// Returns the rows of ancestral sampling or DDIM in another number of steps.
inline Rows new_rows(const json& about, const Schedule& schedule, int count) {
  const json& sampler = about["sampler"];
  bool is_ddim = sampler["name"] == "ddim";
  json variance = is_ddim ? json("small") : sampler["variance"];
  if (variance != "small" && variance != "large") {
    throw InputError(text("--num_steps needs a file with variance small or large. Received: ",
                          variance.is_string() ? variance.get<std::string>() : "one for each step"));
  }
  double eta = is_ddim ? sampler["eta"].get<double>() : 1, b = 1;
  Rows rows;
  for (int step : evenly_spaced(count, schedule.size())) {
    double a = schedule.alpha_bars[step], beta = 1 - a / b, posterior = eta * eta * beta * (1 - b) / (1 - a);
    Row row;
    row.t = schedule.timesteps[step];
    row.from_xt = std::sqrt(std::max(1 - b - posterior, 0.0) / (1 - a));
    row.from_x0 = std::sqrt(b) - row.from_xt * std::sqrt(a);
    row.noise_std = rows.empty() ? 0 : std::sqrt(variance == "large" ? beta : posterior);
    rows.push_back(row);
    b = a;
  }
  std::reverse(rows.begin(), rows.end());
  return with_levels(rows, schedule);
}

// Returns the last rows, from the level nearest to a strength in [0, 1] (Meng et al. 2022, "SDEdit").
inline Rows last_rows(const Rows& rows, const Schedule& schedule, double strength) {
  double wanted = strength * schedule.size(), nearest = wanted;
  size_t kept = 0;
  for (size_t n = 1; n <= rows.size(); ++n) {
    double distance = std::abs(schedule.index_of(rows[rows.size() - n].t) + 1 - wanted);
    if (distance < nearest) {
      nearest = distance;
      kept = n;
    }
  }
  return {rows.end() - kept, rows.end()};
}

// Repeats rows as RePaint does (Lugmayr et al. 2022, appendix B): each stretch of `jump` rows so often.
inline Rows resampled(const Rows& rows, const Schedule& schedule, std::optional<int> jump_length, int resamplings) {
  const int count = int(rows.size()), jump = jump_length.value_or(std::min(10, std::max(count - 1, 1)));
  if (resamplings < 1 || resamplings > kMostResamplings) {
    throw InputError(text("--resamplings must lie in 1 .. ", kMostResamplings, ". Received: ", resamplings));
  }
  if (jump < 1 || (jump_length && resamplings > 1 && jump >= count)) {
    throw InputError(text("--jump_length must be at least 1, and less than the ", count,
                          count == 1 ? " step" : " steps", " unless --resamplings=1. Received: ", jump));
  }
  std::map<int, int> left;
  for (int level = 1; level <= count - jump; level += jump) left[level] = resamplings - 1;
  Rows order;
  for (int level = count; level > 0;) {
    order.push_back(rows[count - level]);
    --level;
    if (left.count(level) == 0 || left[level] == 0) continue;
    --left[level];
    level += jump;
    order.back().climbed = schedule.alpha_bar(rows[count - level].t);
  }
  return order;
}
