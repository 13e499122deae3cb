import { defineConfig } from 'vite';

/** Builds the page into dist/console: flat, with names that change with their content, and nothing inline, as its policy wants it. */
export default defineConfig({
  base: './',
  build: {
    outDir: '../dist/console',
    emptyOutDir: true,
    assetsDir: '',
    assetsInlineLimit: 0,
    modulePreload: false,
    target: 'es2022',
    license: { fileName: 'licenses.md' },
    reportCompressedSize: false,
  },
  logLevel: 'warn',
});
