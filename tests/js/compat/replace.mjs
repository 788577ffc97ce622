/** Replaces the modules that the suite of `@verrou/core` imports from its own package. */
let replacement

export function initialize({ url }) {
  replacement = url
}

export function resolve(specifier, context, next) {
  const isSuite = context.parentURL?.endsWith('/@verrou/core/build/src/test_suite.js')
  if (isSuite && specifier.startsWith('../')) return { url: replacement, shortCircuit: true }
  return next(specifier, context)
}
