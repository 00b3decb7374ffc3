// Pictures in files: PNG, grids.

#pragma once

#include <png.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <system_error>
#include <vector>

#include "files.hpp"

struct Picture {
  int height, width, channels;
  std::vector<uint8_t> values;  // height x width x channels
};

// Returns a number of so many bytes, in which those beyond the end are 0.
inline uint32_t number_at(std::string_view bytes, size_t at, size_t size, bool is_little = false) {
  uint32_t number = 0;
  for (size_t i = 0; i < size; ++i) {
    size_t from = at + (is_little ? size - 1 - i : i);
    number = number << 8 | (from < bytes.size() ? uint8_t(bytes[from]) : 0);
  }
  return number;
}

// Returns the orientation in EXIF data, 1 .. 8; 1 = upright, also where there is none.
inline int orientation_of(std::string_view exif) {
  bool is_little = exif.substr(0, 2) == "II";
  if (!is_little && exif.substr(0, 2) != "MM") return 1;
  size_t entry = size_t(number_at(exif, 4, 4, is_little)) + 2;
  for (uint32_t left = number_at(exif, entry - 2, 2, is_little); left > 0; --left, entry += 12) {
    if (number_at(exif, entry, 2, is_little) != 0x0112) continue;
    uint32_t orientation = number_at(exif, entry + 8, 2, is_little);
    return orientation >= 1 && orientation <= 8 ? int(orientation) : 1;
  }
  return 1;
}

// Turns and mirrors a picture as its orientation asks for.
inline Picture upright(const Picture& picture, int orientation) {
  auto is_one_of = [&](const char* several) { return std::strchr(several, '0' + orientation) != nullptr; };
  bool is_transposed = orientation >= 5, from_below = is_one_of("3467"), from_right = is_one_of("2378");
  Picture made = picture;
  if (is_transposed) std::swap(made.height, made.width);
  auto to = made.values.begin();
  for (int y = 0; y < made.height; ++y) {
    for (int x = 0; x < made.width; ++x) {
      int row = is_transposed ? x : y, column = is_transposed ? y : x;
      if (from_below) row = picture.height - 1 - row;
      if (from_right) column = picture.width - 1 - column;
      to = std::copy_n(&picture.values[(size_t(row) * picture.width + column) * made.channels], made.channels, to);
    }
  }
  return made;
}

// A PNG as libpng is given it: without what would change colours, gamma and profiles.
struct Png {
  std::string content;
  int orientation = 1;
};

inline Png parsed_png(std::string_view file) {
  constexpr size_t kSignature = 8, kFrame = 12;  // bytes; a chunk has its length, name and checksum around its data
  Png png{std::string(file.substr(0, kSignature))};
  for (size_t at = kSignature; at + kFrame <= file.size();) {
    const std::string_view chunk = file.substr(at, kFrame + number_at(file, at, 4)), name = chunk.substr(4, 4);
    bool is_critical = (name[0] & 0x20) == 0;
    if (is_critical || name == "tRNS") png.content += chunk;
    if (name == "eXIf") png.orientation = orientation_of(chunk.substr(8));
    at += chunk.size();
  }
  return png;
}

// Reads a PNG of this size as RGB over white, upright; colour and transparency as Pillow counts them.
inline Picture read_png(const std::string& flag, const fs::path& path, int height, int width) {
  auto refuse = [&](const std::string& why) {
    throw InputError(text(flag, " must be a PNG file. Received: ", path.string(), " (", why, ")"));
  };
  if (!is_file(path)) refuse("no such file");
  const std::string_view file = mapped(path);
  if (file.empty()) refuse("an empty file");
  const Png png = parsed_png(file);
  png_image image = {};
  image.version = PNG_IMAGE_VERSION;
  if (!png_image_begin_read_from_memory(&image, png.content.data(), png.content.size())) refuse(image.message);
  auto [high, wide] = std::pair(image.height, image.width);  // of the header: nothing is decoded yet
  if (png.orientation >= 5) std::swap(high, wide);
  if (int64_t(high) != height || int64_t(wide) != width) {
    png_image_free(&image);
    throw InputError(
        text(flag, " must be ", height, " x ", width, " pixels, as the model paints. Received: ", high, " x ", wide));
  }
  image.format = PNG_FORMAT_RGBA;
  image.flags |= PNG_IMAGE_FLAG_16BIT_sRGB;
  std::vector<uint8_t> rgba(PNG_IMAGE_SIZE(image));
  if (!png_image_finish_read(&image, nullptr, rgba.data(), 0, nullptr)) refuse(image.message);
  Picture picture{int(image.height), int(image.width), 3, {}};
  for (size_t i = 0; i < rgba.size(); i += 4) {
    for (int c = 0; c < 3; ++c)
      picture.values.push_back((rgba[i + c] * rgba[i + 3] + 255 * (255 - rgba[i + 3]) + 127) / 255);
  }
  return upright(picture, png.orientation);
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
  fs::path temporary = path.parent_path() / ("." + path.filename().string() + "." + std::to_string(getpid()) + ".part");
  std::error_code failed;
  if (path.has_parent_path()) fs::create_directories(path.parent_path(), failed);
  bool is_written = !failed && png_image_write_to_file(&image, temporary.c_str(), 0, picture.values.data(), 0, nullptr);
  if (is_written) fs::rename(temporary, path, failed);
  if (!is_written || failed) {
    std::error_code ignored;
    fs::remove(temporary, ignored);
    throw InputError(text(path.string(), " cannot be written: ", failed ? failed.message() : image.message));
  }
}
