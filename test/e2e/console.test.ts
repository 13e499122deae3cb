import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import { type Browser, type BrowserContext, chromium, type Page } from 'playwright-core';
import { listCopies } from '../../services/common/expert-copies.js';
import { Deferred } from '../../services/common/lifecycle.js';
import { startCluster, type TestCluster } from '../support/cluster.js';
import { Load } from '../support/load.js';
import { testRows } from '../support/rows.js';
import { works } from '../support/services.js';
import { until } from '../support/until.js';

const tokens = { client: 'a-client-token', node: 'a-node-token', operator: 'an-operator-token' };
const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core'), 'utf8');
const withChromium = works('the console in a browser', 'chromium', '--version') ? describe : describe.skip;

withChromium('the console in Chromium', () => {
  let cluster: TestCluster;
  let browser: Browser;
  let url: string;
  const requested = new Set<string>();
  const complaints: string[] = [];

  beforeAll(async () => {
    cluster = await startCluster({ workers: 3, routers: 1, tokens, coordinator: { rebalanceSeconds: 0 } });
    url = `${cluster.metricsUrl}/console/`;
    browser = await chromium.launch({ executablePath: '/usr/bin/chromium', args: ['--no-sandbox'] });
  });
  afterAll(() => browser?.close());

  async function open(options: Parameters<Browser['newContext']>[0] = {}): Promise<Page> {
    const context = await browser.newContext({ viewport: { width: 1400, height: 1000 }, ...options });
    context.setDefaultTimeout(60_000);
    const page = await context.newPage();
    page.on('request', (request) => requested.add(new URL(request.url()).origin));
    page.on('pageerror', ({ message }) => complaints.push(message));
    page.on('console', (message) => {
      // What is refused by the tests' wish is told there too.
      if (message.type() === 'error' && !/status of (401|403)/.test(message.text()))
        complaints.push(message.text());
    });
    await page.goto(url);
    return page;
  }

  async function signIn(page: Page, token: string): Promise<void> {
    await page.getByLabel('Token').fill(token);
    await page.getByRole('button', { name: 'Sign in', exact: true }).click();
  }

  async function signedIn(token: string, options: Parameters<typeof open>[0] = {}): Promise<Page> {
    const page = await open(options);
    await signIn(page, token);
    await page.getByRole('heading', { name: 'Nodes' }).waitFor();
    return page;
  }

  const rowOf = (page: Page, name: string) =>
    page.locator('.nodes tbody tr').filter({ hasText: name }).first();

  /** Whether a request with what the page is signed in with is taken. */
  const statusOf = (context: BrowserContext, operation: string, data: object) =>
    context.request
      .post(`${url}operate/${operation}`, { data, headers: { 'content-type': 'application/json' } })
      .then((response) => response.status());

  async function expectAccessible(page: Page): Promise<void> {
    await page.evaluate(axe);
    const violations = await page.evaluate(async () => {
      const { violations } = await (globalThis as unknown as { axe: typeof import('axe-core') }).axe.run();
      return violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html).join(' ')}`);
    });
    expect(violations).toEqual([]);
  }

  test('asks for a token, refuses a wrong one, and takes the right one', async () => {
    const page = await open();
    await expectAccessible(page);
    for (const wrong of ['guessed', `${tokens.operator}s`, tokens.node]) {
      await signIn(page, wrong);
      await until(
        () => page.getByRole('alert').textContent(),
        (text) => (text ?? '') !== '',
      );
      expect(await page.getByRole('heading', { name: 'Nodes' }).count()).toBe(0);
    }
    await signIn(page, tokens.client);
    await page.getByRole('heading', { name: 'Nodes' }).waitFor();
    const [cookie] = await page.context().cookies();
    expect(cookie).toMatchObject({ httpOnly: true, sameSite: 'Strict', path: '/console' });
    expect(cookie!.value).not.toContain(tokens.client);
    await page.reload();
    await page.getByRole('heading', { name: 'Nodes' }).waitFor();
    await page.getByRole('button', { name: 'Sign out' }).click();
    await page.getByLabel('Token').waitFor();
    await page.context().close();
  });

  test("shows clients everything and lets them press nothing; with the operator's token there are buttons", async () => {
    const page = await signedIn(tokens.client);
    await rowOf(page, 'worker-0').waitFor();
    for (const name of [/^Drain/, /^Cordon/, 'Rebalance'])
      expect(await page.getByRole('button', { name }).count()).toBe(0);
    expect(await statusOf(page.context(), 'mark', { worker: 'worker-0', mark: 'DRAINED' })).toBe(403);
    expect(await statusOf(page.context(), 'rebalance', {})).toBe(403);
    await page.getByRole('button', { name: 'Sign in as operator' }).click();
    await signIn(page, tokens.operator);
    await page.getByRole('button', { name: 'Drain worker-0' }).waitFor();
    await page.context().close();
  });

  test('shows where the copies of experts are, cell by cell, to who uses the keyboard', async () => {
    const page = await signedIn(tokens.client);
    const { workers, layers } = (await cluster.client.describeCluster({ placement: true })).view!.placement!;
    const placed = listCopies(layers[1]!).map((copies) => copies.map((at) => workers[at]!));
    const overview = page.getByRole('application', { name: /^Heat map of 2 layers by 3 workers/ });
    await overview.press('ArrowRight');
    const detail = page.getByRole('application', { name: 'Heat map of 8 experts of layer 1 by 3 workers' });
    await detail.focus();
    const readout = page.locator('#placement-readout');
    // From the first cell on: row after row, to and fro.
    await detail.press('Enter');
    for (const row of [0, 1, 2]) {
      for (let step = 0; step < 8; step += 1) {
        const expert = row % 2 === 0 ? step : 7 - step;
        const worker = `worker-${row}`;
        const text = await until(
          () => readout.textContent(),
          (said) => said!.includes(`expert ${expert}, ${worker} `),
        );
        expect([worker, text]).toEqual([
          worker,
          expect.stringContaining(placed[expert]!.includes(worker) ? 'copy serving' : 'no copy'),
        ]);
        if (step < 7) await detail.press(row % 2 === 0 ? 'ArrowRight' : 'ArrowLeft');
      }
      await detail.press('ArrowDown');
    }
    await page.context().close();
  });

  test('paints each copy, and nothing where there is none', async () => {
    const page = await signedIn(tokens.client);
    const { workers, layers } = (await cluster.client.describeCluster({ placement: true })).view!.placement!;
    const placed = listCopies(layers[0]!).map((copies) => copies.map((at) => workers[at]!));
    // Cells are as large as they get, 34 × 22, below the labels and up to the right edge.
    const painted = () =>
      page.evaluate(`(() => {
        const canvas = document.querySelector('.detail canvas.cells');
        const context = canvas.getContext('2d');
        const colourAt = (x, y) => context.getImageData(x, y, 1, 1).data.join();
        const at = (expert, row) => colourAt(canvas.width - 1 - Math.round((7.5 - expert) * 34), 16 + row * 22 + 10);
        const empty = colourAt(canvas.width - 1, 16 + 10);
        return [0, 1, 2].map((row) => [0, 1, 2, 3, 4, 5, 6, 7].filter((expert) => at(expert, row) !== empty));
      })()`);
    const expected = ['worker-0', 'worker-1', 'worker-2'].map((name) =>
      [...placed.keys()].filter((expert) => placed[expert]!.includes(name)),
    );
    await until(painted, (cells) => JSON.stringify(cells) === JSON.stringify(expected));
    await page.context().close();
  });

  test('shows traffic, batches under way and what they come to while there is load', async () => {
    const page = await signedIn(tokens.client);
    const load = await Load.start(cluster.client);
    const held = new Deferred<void>();
    async function* slowly() {
      yield testRows(64, 256);
      await held.promise;
      yield testRows(64, 256);
    }
    const call = await cluster.client.forward(slowly(), {
      sequences: 2,
      length: 64,
      batchId: 'the-slow-one',
      chunkTokens: 64,
    });
    const answers = call.collect();
    await page.getByText('the-slow-one').first().waitFor();
    for (const row of [page.locator('.links tbody tr').first(), page.locator('.hosts tbody tr').first()])
      await until(
        () => row.textContent(),
        (text) => /\d [kM]B/.test(text ?? ''),
      );
    const figure = page.locator('.chart', { hasText: 'Throughput' }).locator('b');
    await until(
      () => figure.textContent(),
      (text) => /^[1-9].* tokens\/s$/.test(text ?? ''),
    );
    held.resolve();
    await answers;
    await load.stop();
    await until(
      () => page.getByText('the-slow-one').count(),
      (count) => count === 0,
    );
    await page.context().close();
  });

  test('drains a worker when an operator says so twice, shows it done, and takes it back', async () => {
    const page = await signedIn(tokens.operator);
    const row = rowOf(page, 'worker-1');
    const button = page.getByRole('button', { name: 'Drain worker-1', exact: true });
    const node = async () =>
      (await cluster.client.describeCluster()).view!.nodes.find(({ name }) => name === 'worker-1')!;
    await button.focus();
    await page.keyboard.press('Enter');
    await page.getByRole('dialog', { name: 'Drain worker-1?' }).waitFor();
    await page.keyboard.press('Escape');
    expect((await node()).mark).toBe('NO_MARK');
    await button.click();
    await page.getByRole('dialog').getByRole('button', { name: 'Drain', exact: true }).click();
    await row.getByText('drained').waitFor();
    await until(
      () => row.locator('td').nth(2).textContent(),
      (copies) => copies === '0',
    );
    expect(await node()).toMatchObject({ mark: 'DRAINED', serving: 0, loading: 0, draining: 0 });
    await page.locator('.events').getByText('worker worker-1 is drained').waitFor();
    await page.getByRole('button', { name: 'Undrain worker-1' }).click();
    await page.getByRole('dialog').getByRole('button', { name: 'Undrain' }).click();
    await until(node, ({ mark }) => mark === 'NO_MARK');
    await page.context().close();
  });

  test('rebalances when an operator says so, and says what came of it', async () => {
    const page = await signedIn(tokens.operator);
    const load = await Load.start(cluster.client);
    await load.more(8);
    await page.getByRole('button', { name: 'Rebalance' }).click();
    await page.getByRole('dialog').getByRole('button', { name: 'Rebalance' }).click();
    await page.getByText(/^(\d+ copies to load, |nothing to move: )/).waitFor();
    await load.stop();
    await page.context().close();
  });

  test.each(['light', 'dark'] as const)(
    'can be read and used by everybody, in %s colours and on a narrow screen',
    async (colorScheme) => {
      const page = await signedIn(tokens.operator, { colorScheme });
      await page.getByRole('button', { name: 'Drain worker-0' }).waitFor();
      await expectAccessible(page);
      await page.setViewportSize({ width: 390, height: 800 });
      await expectAccessible(page);
      const tooWide = () => page.evaluate<number>('document.documentElement.scrollWidth - innerWidth');
      await until(tooWide, (pixels) => pixels <= 0);
      await page.context().close();
    },
  );

  test('sees that a worker died, and that the coordinator did', async () => {
    const page = await signedIn(tokens.client);
    await rowOf(page, 'worker-2').getByText('ready').waitFor();
    await cluster.kill('worker-2');
    await rowOf(page, 'worker-2').getByText('dead').waitFor();
    await page
      .locator('.events')
      .getByText(/worker worker-2 died: /)
      .waitFor();
    await cluster.kill('coordinator');
    await page.getByText('The coordinator does not answer.').waitFor();
    complaints.splice(0);
    await page.context().close();
  });

  test('asks nobody but the coordinator, and the browser complains of nothing', () => {
    expect([...requested]).toEqual([new URL(url).origin]);
    expect(complaints).toEqual([]);
  });
});
