// Sends a batch through all layers, then calls the bare MoE blocks one after the other, as an engine does: forward.mjs HOST:PORT
import { SwitchyardClient } from 'switchyard';

const client = await SwitchyardClient.connect(process.argv[2]);
try {
  const { name, hidden, layers } = await client.describeModel();
  console.log(`${name}: ${layers.length} layers, rows of ${hidden} BF16 values`);

  // 4 sequences of 256 tokens. 0x3f80 is 1.0 in BF16.
  const tokens = new Uint16Array(4 * 256 * hidden).fill(0x3f80);
  const call = await client.forward(new Uint8Array(tokens.buffer), { sequences: 4, deadlineMs: 30_000 });
  const { rows: answer, summary } = await call.collect();
  console.log(
    `batch: ${summary.tokens} tokens, ${answer.byteLength} bytes, ${summary.messagesSent} messages to workers`,
  );

  // One token, block after block; what an engine does between them is left out.
  const session = client.session();
  let rows = new Uint8Array(tokens.buffer, 0, 2 * hidden);
  for (const { layer } of layers) {
    const only = { first: layer, last: layer };
    ({ rows } = await session.forward(rows, {
      layers: only,
      norm: false,
      residual: false,
      deadlineMs: 30_000,
    }));
  }
  console.log(`session: ${layers.length} blocks, ${rows.byteLength} bytes`);
  await session.close();
} finally {
  await client.close();
}
