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

/** What builds the addon, in a checkout as in an installed package. */
export function buildCommand(): string {
  const native = join(packageRoot(), 'native');
  return `npx cmake-js@8 compile --directory ${native} --out ${join(native, 'build')}`;
}

/** The built addon: the one that SWITCHYARD_ADDON names, otherwise the package's. Throws with the command that builds it. */
export function addonPath(): string {
  const path =
    process.env.SWITCHYARD_ADDON ?? join(packageRoot(), 'native', 'build', 'Release', 'switchyard.node');
  if (!existsSync(path)) {
    throw new Error(`switchyard: the native addon is not built (${path} is missing); run: ${buildCommand()}`);
  }
  return path;
}
