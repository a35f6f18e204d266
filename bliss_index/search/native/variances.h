// How much the similarities to a text vary over the images of a class.
#pragma once

#include <functional>
#include <vector>

#include "engine.h"

namespace bliss {

// The images of a class, in float64: (count x dim), or where there are many the (dim x dim) sum of
// (x - mean)(x - mean)' over them, which is symmetric to the last bit.
struct ClassImages {
  const double* rows;
  std::size_t count;  // of images; 0 where `rows` is the sum
  const double* mean;
};

// Write <t, mean> and the sum over the images of <x - mean, t>^2 for every text t and class,
// (texts x classes). Nothing depends on the other texts or classes, on threads or on the kernel.
// Returns false, with part of it done, when `idle` asked to stop.
bool class_variances(const Rows& texts, const std::vector<ClassImages>& classes,
                     const Kernel& kernel, std::size_t threads, const std::function<bool()>& idle,
                     double* means, double* squares);

}  // namespace bliss
