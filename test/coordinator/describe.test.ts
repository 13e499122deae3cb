import { join } from 'node:path';
import { expect, test } from '@jest/globals';
import protobuf from 'protobufjs';
import { describeModel } from '../../services/coordinator/describe.js';
import { openModel } from '../../services/model/load.js';
import { fixtures } from '../model/support.js';

const path = join(import.meta.dirname, '..', '..', 'proto', 'switchyard', 'v1', 'model.proto');
const Description = protobuf.loadSync(path).lookupType('switchyard.v1.ModelDescription');

test.each([
  ['laguna-capped', { routing: { logitCap: expect.any(Number) } }],
  ['phimoe', { routing: { score: 'sparse-mixer', mixerReach: expect.any(Number) } }],
  ['dbrx-root', { routing: { normPower: 2 } }],
  ['longcat_flash', { identities: expect.any(Number) }],
  ['deepseek_v4-hash', { vocabulary: 16, givenOnly: true }],
  [
    'ernie4_5_vl_moe',
    {
      experts: 18,
      isolated: { experts: 8, expert: expect.objectContaining({ ffn: 8 }), tokenIds: [2, 4, 7, 9, 12, 15] },
    },
  ],
  ['nemotron_h-latent', { expert: { latent: expect.any(Number) } }],
])('what is special of %s is described to who reads the message', async (family, expected) => {
  const model = await openModel({ kind: 'checkpoint', directory: join(fixtures, 'families', family) });
  const message = Description.decode(
    Description.encode(Description.fromObject(describeModel(model.spec))).finish(),
  );
  model.close();
  expect(Description.toObject(message).layers[0]).toMatchObject(expected);
});
