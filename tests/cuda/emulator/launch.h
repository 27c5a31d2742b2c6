// What build.py puts behind a kernel's source, EMU_KERNEL(its name, its bounds): from a pointer to the kernel, its parameters and a call with arguments by address.
#pragma once

namespace emu {

struct Parameter {
    int size, kind;                   // 'p'ointer, 'i'nteger, 'f'loat, or 's' for a structure
    int pointee_size, pointee_kind;   // of a pointer: what it points to; 0 for void
};

template <class T> struct Bare { typedef T type; };
template <class T> struct Bare<const T> { typedef T type; };
template <class T> struct Bare<volatile T> { typedef T type; };
template <class T> struct Bare<const volatile T> { typedef T type; };
template <class T> constexpr int kind_of() {
    if constexpr (__is_class(T)) return 's';
    else return T(1) / T(2) == T(0) ? 'i' : 'f';
}
template <class T> struct Described { static constexpr Parameter value = {sizeof(T), kind_of<T>(), 0, 0}; };
template <class T> struct Described<T *> {
    typedef typename Bare<T>::type To;
    static constexpr Parameter value = {sizeof(T *), 'p', sizeof(To), kind_of<To>()};
};
template <> struct Described<void *> { static constexpr Parameter value = {sizeof(void *), 'p', 0, 's'}; };
template <> struct Described<const void *> { static constexpr Parameter value = {sizeof(void *), 'p', 0, 's'}; };

template <int...> struct Indices {};
template <class... A, int... I> void call(void (*kernel)(A...), void **arguments, Indices<I...>) {
    kernel(*static_cast<typename Bare<A>::type *>(arguments[I])...);
}
template <class... A> void call(void (*kernel)(A...), void **arguments) { call(kernel, arguments, Indices<__integer_pack(sizeof...(A))...>()); }
template <class... A> int describe(void (*)(A...), Parameter *out) {
    const Parameter all[] = {Described<typename Bare<A>::type>::value..., Parameter{}};
    for (unsigned i = 0; out && i < sizeof...(A); i++) out[i] = all[i];
    return sizeof...(A);
}
constexpr int first(int value, ...) { return value; }

}  // namespace emu

#define EMU_KERNEL(name, ...)                                                                                       \
    extern "C" void emu_call_##name(void **arguments) { emu::call(name, arguments); }                               \
    extern "C" int emu_describe_##name(emu::Parameter *out) { return emu::describe(name, out); }                    \
    extern "C" int emu_bounds_##name() { return emu::first(__VA_ARGS__); }
