/** The example `examples/node`, run as its README says. */
import assert from 'node:assert/strict'
import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { cp, mkdir, mkdtemp, readFile, readdir, rm, symlink } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'

const root = fileURLToPath(new URL('../../', import.meta.url))
const example = join(root, 'examples', 'node')

/** Longer than any of these tests takes, even on a busy machine. */
const options = { timeout: 300_000 }

test('the transfer example behaves as its README says', options, async (t) => {
  const readme = await readFile(join(example, 'README.md'), 'utf8')
  const blocks = Array.from(readme.matchAll(/^```(\w+)\n(.*?)^```$/gms), ([, kind, text]) => ({
    kind,
    lines: text.trim().split('\n'),
  }))
  const kinds = blocks.map(({ kind }) => kind)
  assert.deepEqual(kinds, ['sh', 'sh', 'sh', 'text'])
  const [setUp, variable, commands, output] = blocks.map(({ lines }) => lines)

  // A copy of the parts of the repository that the example needs, with the build results.
  const copy = await mkdtemp(join(tmpdir(), 'verrou-'))
  t.after(() => rm(copy, { recursive: true }))
  await mkdir(join(copy, 'examples'))
  await symlink(join(root, 'target'), join(copy, 'target'))
  const fresh = (path) => !/\/(jobs|locks|node_modules)$/.test(path)
  await cp(example, join(copy, 'examples', 'node'), { recursive: true, filter: fresh })
  const [build, ...rest] = [setUp.filter((line) => line.startsWith('cargo ')), ...setUp.slice(2)]
  assert.deepEqual(build, ['cargo build', 'cargo xtask js'])
  await promisify(execFile)('sh', ['-euc', rest.join('\n')], { cwd: copy })

  const script = [...variable, ...commands]
  assert.equal(script.at(-1), 'node worker.mjs')
  const shell = spawn('sh', ['-uc', [...script.slice(0, -1), 'exec node worker.mjs'].join('\n')], {
    cwd: join(copy, 'examples', 'node'),
    env: { ...process.env, VERROU_COMMAND: undefined },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  t.after(() => shell.kill('SIGKILL'))
  let complaints = ''
  shell.stderr.setEncoding('utf8').on('data', (text) => {
    complaints += text
  })
  const ended = once(shell, 'exit')
  const said = []
  for await (const line of createInterface(shell.stdout)) {
    said.push(line)
    if (said.length === output.length) break
  }
  assert.deepEqual(said, output, complaints)
  assert.match(complaints, /^verrou: cannot acquire the lock `payment-123`: .*\n$/)
  shell.kill('SIGINT')
  assert.deepEqual(await ended, [0, null], complaints)
  assert.deepEqual(await readdir(join(copy, 'examples', 'node', 'jobs')), [])

  const free = ['--store', `lease:${copy}/examples/node/locks`, 'run', 'payment-123', '--no-wait']
  await promisify(execFile)(join(copy, 'target', 'debug', 'verrou'), [...free, '--', 'true'])
})
