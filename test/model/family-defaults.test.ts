import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from '@jest/globals';
import { defaults } from '../../services/model/families/defaults.js';
import { families } from '../../services/model/families/index.js';
import { readFamily } from '../../services/model/families/read.js';
import { failure, fixtures } from './support.js';

type Keys = Record<string, unknown>;

/** What a fixture's config.json says with other values in the language model's part; undefined removes a key. */
function read(fixture: string, values: Keys) {
  const json = JSON.parse(readFileSync(join(fixtures, 'families', fixture, 'config.json'), 'utf8'));
  const change = (keys: Keys) => JSON.parse(JSON.stringify({ ...keys, ...values }));
  const changed = json.text_config ? { ...json, text_config: change(json.text_config) } : change(json);
  return readFamily('config.json', changed).config;
}

const without = (...keys: string[]) => Object.fromEntries(keys.map((key) => [key, undefined]));

test('are there for every type', () => {
  expect(Object.keys(defaults).sort()).toEqual(families.flatMap(({ types }) => types).sort());
});

describe('a key that config.json does not have is what transformers takes:', () => {
  const v3 = ['deepseek_v3', 'deepseek_v32', 'glm_moe_dsa', 'exaone_moe', 'bailing_hybrid', 'kimi_k25'];

  test.each([
    ...[...v3, 'sarvam_moe', 'sarvam_mla', 'axk1', 'axk2', 'glm5_next'].map((family) => [family, 2.5]),
    ...['hy_v4', 'hy_v4_vl'].map((family) => [family, 2.827]),
    ...[
      ['glm4_moe_lite', 1.8],
      ['kimi_linear', 2.446],
      ['kimi_k2', 2.5],
      ['minimax_m3', 2],
      ['hy_v3', 2.826],
      ['longcat_flash', 6],
      ['mimo_v2_flash', 1],
      ['laguna', 1],
    ],
  ] as [string, number][])('%s multiplies weights by %d', (family, scale) => {
    const keys = ['routed_scaling_factor', 'router_scaling_factor', 'moe_routed_scaling_factor'];
    expect(read(family, without(...keys)).routing.scale).toBe(scale);
  });

  test.each([
    ['deepseek_v3', 8, 4],
    ['deepseek_v32', 8, 4],
    ['bailing_hybrid', 8, 4],
    ['axk1', 8, 4],
    ['kimi_k25', 8, 4],
    ['glm4_moe', 1, 1],
    ['axk2', 1, 1],
  ])('%s has %d groups, of which it takes %d', (family, groups, groupsChosen) => {
    const { routing } = read(family, without('n_group', 'num_expert_group', 'topk_group'));
    expect(routing).toMatchObject({ groups, groupsChosen });
  });

  test.each([
    ['deepseek_v3', 16],
    ['solar_open', 16],
    ['glm4_moe', 16],
    ['glm4v_moe', 16],
    ['exaone_moe', 16],
    ['sarvam_moe', 16],
    ['bailing_hybrid', 16],
    ['kimi_linear', 16],
    ['kimi_k25-saved', 16],
    ['axk2', 16],
    ['hy_v4', 16],
    ['glm5_next', 16],
    ['dots3_note', 24],
    ['mistral4', 16],
    ['mistral_large4', 16],
    ['afmoe', 32],
  ])('%s has shared experts of %d neurons', (family, ffn) => {
    expect(read(family, without('n_shared_experts', 'num_shared_experts')).shared).toMatchObject({ ffn });
  });

  test.each([
    ['mimo_v2_flash', 1e-5],
    ['glm4_moe', 1e-5],
    ['glm_moe_dsa', 1e-5],
    ['glm4v_moe', 1e-5],
    ['exaone_moe', 1e-5],
    ['solar_open', 1e-5],
    ['kimi_linear', 1e-5],
    ['hy_v4_vl', 1e-5],
    ['glm5_next', 1e-5],
    ['flex_olmo', 1e-6],
    ['olmoe', 1e-5],
    ['deepseek_v3', 1e-6],
    ['nemotron_h', 1e-5],
    ['lfm2_moe', 1e-5],
  ])("%s adds %d in its norms' root", (family, epsilon) => {
    const keys = without('rms_norm_eps', 'layer_norm_epsilon', 'norm_eps');
    expect(read(family, keys).normEpsilon).toBe(epsilon);
  });

  test.each([
    ['deepseek_v3', 3],
    ['deepseek_v32', 3],
    ['kimi_k25', 3],
    ['glm5_next', 3],
    ['step3p7', 3],
    ['bailing_hybrid', 2],
    ...['glm4_moe', 'glm4v_moe', 'glm4_moe_lite', 'sarvam_moe', 'sarvam_mla', 'hy_v3', 'hy_v4'].map(
      (each) => [each, 1],
    ),
    ...['hy_v4_vl', 'axk1', 'axk2', 'mimo_v2_flash', 'kimi_linear', 'laguna'].map((each) => [each, 1]),
    ...['dots1', 'mistral4', 'minimax_m3', 'cohere2_moe', 'mellum'].map((each) => [each, 0]),
  ] as [string, number][])('%s has %d dense layers in front', (family, dense) => {
    const keys = without('mlp_layer_types', 'first_k_dense_replace', 'moe_layer_freq', 'moe_layers_enum');
    const { layers } = read(family, { ...keys, num_hidden_layers: 5 });
    expect(layers).toEqual([0, 1, 2, 3, 4].slice(dense));
  });

  test.each([
    ['dots1', { norm_topk_prob: undefined }, { routing: { renormalise: false } }],
    ['qwen3_omni_moe_thinker', { norm_topk_prob: undefined }, { routing: { renormalise: true } }],
    ['longcat_flash', { zero_expert_num: undefined }, { identities: 256 }],
    [
      'dbrx',
      { ffn_config: { ffn_hidden_size: 8 } },
      { experts: 4, routing: { topK: 1 }, expert: { ffn: 8 } },
    ],
    ['dbrx', { ffn_config: undefined }, { experts: 4, expert: { ffn: 3584 } }],
    ['qwen2_moe', without('num_experts', 'hidden_size'), { experts: 60, hidden: 2048 }],
    [
      'deepseek_v3',
      without('n_routed_experts', 'num_experts_per_tok'),
      { experts: 256, routing: { topK: 8 } },
    ],
    ['laguna', without('shared_expert_intermediate_size'), { shared: { ffn: 512 } }],
    ['ernie4_5_vl_moe', without('moe_intermediate_size'), { expert: { ffn: 1536 } }],
    ['nemotron_h', without('layers_block_type'), { layers: [1] }],
    ['aria', without('moe_topk', 'intermediate_size'), { routing: { topK: 2 }, expert: { ffn: 4096 } }],
  ])('%s without %j', (family, keys, expected) => {
    expect(read(family, keys)).toMatchObject(expected);
  });
});

describe('a key of another name counts before what transformers takes:', () => {
  test.each([
    ['mimo_v2_flash', 'rms_norm_eps', { layernorm_epsilon: 1e-3 }, { normEpsilon: 1e-3 }],
    ['step3p7', 'share_expert_dim', { share_expert_dims: 40 }, { shared: { ffn: 40 } }],
    ['nemotron_h', 'layers_block_type', { layer_types: ['moe', 'moe'] }, { layers: [0, 1] }],
    ['nemotron_h', 'layers_block_type', { hybrid_override_pattern: 'MEE' }, { layers: [1, 2] }],
    ['mimo_v2_flash', 'mlp_layer_types', { moe_layer_freq: [1, 0, 1] }, { layers: [0, 2] }],
    ['glm5_next', 'mlp_layer_types', { first_k_dense_replace: 2 }, { layers: [2] }],
    ['deepseek_v4', 'mlp_layer_types', { num_hash_layers: 1 }, { hashed: { layers: [0] } }],
  ])('%s without %s, with %j', (family, absent, keys, expected) => {
    expect(read(family, { ...without(absent), ...keys })).toMatchObject(expected);
  });

  test('null is none, and no default', () => {
    const none = { n_group: null, topk_group: null, n_shared_experts: null, routed_scaling_factor: null };
    expect(read('deepseek_v3', none)).toMatchObject({ routing: { groups: 1, scale: 1 }, shared: null });
    const renamed = { ...without('n_shared_experts'), num_shared_experts: null };
    expect(read('deepseek_v3', renamed)).toMatchObject({ shared: null });
  });
});

describe('kinds of layers are refused', () => {
  test.each([
    [
      'glm4_moe_lite',
      ['dense', 'sprase', 'sparse'],
      'mlp_layer_types.1 is "sprase"; allowed: a list of "dense" and "sparse"',
    ],
    [
      'deepseek_v4',
      ['hash_moe', 'sparse', 'moe'],
      'mlp_layer_types.1 is "sparse"; allowed: a list of "hash_moe" and "moe"',
    ],
    [
      'ernie4_5_vl_moe',
      ['dense', 'moe', 'sparse'],
      'mlp_layer_types.1 is "moe"; allowed: a list of "dense" and "sparse"',
    ],
    [
      'laguna',
      ['dense', 'sparse'],
      'mlp_layer_types is ["dense","sparse"]; allowed: a list of at least 3 entries, one for each of num_hidden_layers',
    ],
    ['deepseek_v4', ['moe'], 'mlp_layer_types is ["moe"]; allowed: a list of at least 3 entries'],
    ['mellum', 'sparse', 'mlp_layer_types is "sparse"; allowed: a list of "dense" and "sparse"'],
  ])('%s %j', async (family, kinds, text) => {
    const error = await failure(() => read(family, { mlp_layer_types: kinds }));
    expect(error).toMatchObject({ code: 'MODEL_INVALID' });
    expect(error.message).toContain(`config.json: ${text}`);
  });
});
