import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** The directory that holds the package, from sources as well as from dist/. */
export function packageRoot(): string {
  let directory = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(directory, 'native', 'CMakeLists.txt'))) {
    const parent = dirname(directory);
    if (parent === directory)
      throw new Error('switchyard: native/CMakeLists.txt not found above the running code');
    directory = parent;
  }
  return directory;
}

/** A JavaScript file of the build: what starts as a process or a thread of its own, from the sources of tests too. */
export function builtFile(...path: string[]): string {
  return join(packageRoot(), 'dist', ...path);
}

/** The command line, as a program for Node. */
export function commandLine(): string {
  return builtFile('bin', 'switchyard.js');
}

/**
 * Flags of Node for the processes of a cluster, as the command's first line has them: to collect a young generation of 8 MiB holds up a small batch
 * for less than one of 16 MiB does (bench/results/young-generation.txt).
 */
export const nodeFlags: readonly string[] = ['--max-semi-space-size=8'];

/** What builds the addon, in a checkout as in an installed package. */
export function buildCommand(): string {
  const native = join(packageRoot(), 'native');
  return `npx cmake-js@8 compile --directory ${native} --out ${join(native, 'build')}`;
}

/** The built addon: the one that SWITCHYARD_ADDON names, otherwise the package's. Throws with the command that builds it. */
export function addonPath(): string {
  const named = process.env.SWITCHYARD_ADDON;
  if (named !== undefined && !existsSync(named)) throw wrongAddon(named, 'there is none');
  const path = named ?? join(packageRoot(), 'native', 'build', 'Release', 'switchyard.node');
  if (!existsSync(path)) {
    throw invalid(`switchyard: the native addon is not built (${path} is missing); run: ${buildCommand()}`);
  }
  return path;
}

/** What SWITCHYARD_ADDON names cannot be used. */
export function wrongAddon(path: string, reason: string): Error {
  return invalid(
    `SWITCHYARD_ADDON is ${JSON.stringify(path)}; allowed: a build of the native addon (${reason})`,
  );
}

function invalid(text: string): Error {
  return Object.assign(new Error(text), { code: 'CONFIG_INVALID' });
}
