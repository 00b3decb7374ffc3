// Pictures in files: PNG, grids.

#pragma once

#include <png.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <system_error>

#include "side_file.hpp"

struct Picture {
  int height, width, channels;
  std::vector<uint8_t> values;  // height x width x channels
};

// Reads a PNG as RGB over white; colour and transparency as Pillow counts them.
inline Picture read_png(const std::string& flag, const fs::path& path) {
  png_image image = {};
  image.version = PNG_IMAGE_VERSION;
  auto refuse = [&](const std::string& why) {
    throw InputError(text(flag, " must be a PNG file. Received: ", path.string(), " (", why, ")"));
  };
  if (!fs::is_regular_file(path)) refuse("no such file");
  if (!png_image_begin_read_from_file(&image, path.c_str())) refuse(image.message);
  image.format = PNG_FORMAT_RGBA;
  image.flags |= PNG_IMAGE_FLAG_16BIT_sRGB;
  std::vector<uint8_t> rgba(PNG_IMAGE_SIZE(image));
  if (!png_image_finish_read(&image, nullptr, rgba.data(), 0, nullptr)) refuse(image.message);
  Picture picture{int(image.height), int(image.width), 3, {}};
  for (size_t i = 0; i < rgba.size(); i += 4) {
    for (int c = 0; c < 3; ++c)
      picture.values.push_back((rgba[i + c] * rgba[i + 3] + 255 * (255 - rgba[i + 3]) + 127) / 255);
  }
  return picture;
}

// Returns the luma of an RGB picture (ITU-R 601-2).
inline Picture grey(const Picture& picture) {
  Picture made{picture.height, picture.width, 1, {}};
  for (size_t i = 0; i < picture.values.size(); i += 3) {
    const uint8_t* p = &picture.values[i];
    made.values.push_back((p[0] * 19595 + p[1] * 38470 + p[2] * 7471 + 0x8000) >> 16);
  }
  return made;
}

// Arranges pictures in a grid as square as possible, enlarged if small, with grey gutters.
inline Picture grid(const std::vector<Picture>& pictures) {
  const int readable = 48, gutter = 2, gutter_grey = 128;
  const auto& [height, width, channels, values] = pictures[0];
  int enlarge = std::max(1, int(std::nearbyint(double(readable) / std::max(height, width))));
  int count = int(pictures.size()), columns = int(std::ceil(std::sqrt(count)));
  int down = height * enlarge + gutter, across = width * enlarge + gutter;
  Picture canvas{(count + columns - 1) / columns * down + gutter, columns * across + gutter, channels, {}};
  canvas.values.assign(size_t(canvas.height) * canvas.width * channels, gutter_grey);
  for (int k = 0; k < count; ++k) {
    for (int y = 0; y < height * enlarge; ++y) {
      for (int x = 0; x < width * enlarge; ++x) {
        size_t to = size_t(k / columns * down + gutter + y) * canvas.width + k % columns * across + gutter + x;
        size_t from = size_t(y / enlarge) * width + x / enlarge;
        std::copy_n(&pictures[k].values[from * channels], channels, &canvas.values[to * channels]);
      }
    }
  }
  return canvas;
}

// Writes a PNG to a temporary file and renames it, so that the file is complete or absent.
inline void save(const fs::path& path, const Picture& picture) {
  const png_uint_32 formats[] = {PNG_FORMAT_GRAY, PNG_FORMAT_GA, PNG_FORMAT_RGB, PNG_FORMAT_RGBA};
  png_image image = {};
  image.version = PNG_IMAGE_VERSION;
  image.width = picture.width, image.height = picture.height;
  image.format = formats[picture.channels - 1];
  if (path.has_parent_path()) fs::create_directories(path.parent_path());
  fs::path temporary = path.parent_path() / ("." + path.filename().string() + "." + std::to_string(getpid()) + ".part");
  std::error_code failed;
  bool is_written = png_image_write_to_file(&image, temporary.c_str(), 0, picture.values.data(), 0, nullptr);
  if (is_written) fs::rename(temporary, path, failed);
  if (!is_written || failed) {
    std::error_code ignored;
    fs::remove(temporary, ignored);
    throw InputError(text(path.string(), " cannot be written: ", failed ? failed.message() : image.message));
  }
}
