import { createRequire } from 'node:module';
import { dirname, relative } from 'node:path';
import { defineConfig, type Plugin } from 'vite';

const { resolve } = createRequire(import.meta.url);

/** Packages that read files of their own find them where they are installed. */
const ownFolders: Plugin = {
  name: 'own-folders',
  transform(code, id) {
    const name = /.*\/node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(id)?.[1];
    if (name === undefined || !/\b__dirname\b/.test(code)) return null;
    const within = relative(dirname(resolve(name)), dirname(id));
    return code.replace(
      /\b__dirname\b/g,
      `require('node:path').join(require.resolve('${name}'), '..', '${within}')`,
    );
  },
};

/**
 * The command line in few files: Node takes long to find all those that it and its libraries are written in, in each process of a
 * cluster.
 */
export default defineConfig({
  plugins: [ownFolders],
  build: {
    ssr: 'services/cli/main.ts',
    outDir: 'dist/bin',
    target: 'node20',
    minify: false,
    rolldownOptions: {
      output: {
        entryFileNames: 'switchyard.js',
        chunkFileNames: '[name].js',
      },
    },
    reportCompressedSize: false,
  },
  ssr: {
    noExternal: true,
    // Loaded by need.
    external: ['yaml', '@kubernetes/client-node', '@napi-rs/blake-hash'],
  },
  logLevel: 'warn',
});
