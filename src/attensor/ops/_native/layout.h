// The layout of a struct that Python fills, for Python to check: sizeof, then the offset of every field in order.

#pragma once

#include <cstddef>
#include <cstdint>

#define ATTENSOR_EXPORT extern "C" __attribute__((visibility("default")))

// ATTENSOR_NAME(sum) is attensor_sum_float or attensor_sum_double: every source is compiled once for each
#define ATTENSOR_JOIN(name, real) attensor_##name##_##real
#define ATTENSOR_JOINED(name, real) ATTENSOR_JOIN(name, real)
#define ATTENSOR_NAME(name) ATTENSOR_JOINED(name, ATTENSOR_REAL)

#define ATTENSOR_PARENTHESES ()
// up to 64 fields
#define ATTENSOR_EXPAND(...) ATTENSOR_EXPAND_3(ATTENSOR_EXPAND_3(ATTENSOR_EXPAND_3(ATTENSOR_EXPAND_3(__VA_ARGS__))))
#define ATTENSOR_EXPAND_3(...) ATTENSOR_EXPAND_2(ATTENSOR_EXPAND_2(ATTENSOR_EXPAND_2(ATTENSOR_EXPAND_2(__VA_ARGS__))))
#define ATTENSOR_EXPAND_2(...) ATTENSOR_EXPAND_1(ATTENSOR_EXPAND_1(ATTENSOR_EXPAND_1(ATTENSOR_EXPAND_1(__VA_ARGS__))))
#define ATTENSOR_EXPAND_1(...) __VA_ARGS__
#define ATTENSOR_OFFSETS(type, field, ...) \
  offsetof(type, field), __VA_OPT__(ATTENSOR_OFFSETS_AGAIN ATTENSOR_PARENTHESES(type, __VA_ARGS__))
#define ATTENSOR_OFFSETS_AGAIN() ATTENSOR_OFFSETS

#define ATTENSOR_LAYOUT(name, type, ...)                                                                      \
  ATTENSOR_EXPORT const std::int64_t* ATTENSOR_NAME(name##_layout)() {                                        \
    static const std::int64_t table[] = {sizeof(type), ATTENSOR_EXPAND(ATTENSOR_OFFSETS(type, __VA_ARGS__))}; \
    return table;                                                                                             \
  }
