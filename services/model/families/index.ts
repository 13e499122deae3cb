import { afmoe } from './afmoe.js';
import { aria } from './aria.js';
import { axk1, axk2 } from './axk.js';
import { cohere2Moe } from './cohere2-moe.js';
import { dbrx } from './dbrx.js';
import { deepseekV2 } from './deepseek-v2.js';
import { deepseekV3, solarOpen } from './deepseek-v3.js';
import { deepseekV4 } from './deepseek-v4.js';
import { dots3Note } from './dots3-note.js';
import { ernie45Moe } from './ernie4-5-moe.js';
import { ernie45VlMoe } from './ernie4-5-vl-moe.js';
import type { Family } from './family.js';
import { flexOlmo } from './flex-olmo.js';
import { gemma4 } from './gemma4.js';
import { glm5Next } from './glm5-next.js';
import { gptOss, openaiPrivacyFilter } from './gpt-oss.js';
import { graniteMoe } from './granitemoe.js';
import { hunyuanV1Moe } from './hunyuan-v1-moe.js';
import { hyV3 } from './hy-v3.js';
import { hyV4 } from './hy-v4.js';
import { jamba } from './jamba.js';
import { jetMoe } from './jetmoe.js';
import { kimiLinear } from './kimi-linear.js';
import { laguna } from './laguna.js';
import { lfm2Moe } from './lfm2-moe.js';
import { llama4 } from './llama4.js';
import { longcatFlash } from './longcat-flash.js';
import { mellum } from './mellum.js';
import { minimax } from './minimax.js';
import { minimaxM2 } from './minimax-m2.js';
import { minimaxM3 } from './minimax-m3.js';
import { mistral4, mistralLarge4 } from './mistral4.js';
import { mixtral } from './mixtral.js';
import { nemotronH } from './nemotron-h.js';
import { olmoe } from './olmoe.js';
import { phiMoe } from './phimoe.js';
import { qwen2Moe } from './qwen2-moe.js';
import { qwen3Moe } from './qwen3-moe.js';
import { qwen3Next, qwen4Exp } from './qwen3-next.js';
import { qwen3OmniMoe } from './qwen3-omni-moe.js';
import { qwen3VlMoe } from './qwen3-vl-moe.js';
import { step3p7 } from './step3p7.js';

export const families: readonly Family[] = [
  mixtral,
  qwen2Moe,
  qwen3Moe,
  qwen3VlMoe,
  qwen3Next,
  olmoe,
  deepseekV2,
  deepseekV3,
  solarOpen,
  glm5Next,
  minimaxM2,
  minimaxM3,
  gptOss,
  llama4,
  ernie45Moe,
  nemotronH,
  deepseekV4,
  gemma4,
  kimiLinear,
  jamba,
  lfm2Moe,
  hyV3,
  hyV4,
  hunyuanV1Moe,
  mellum,
  laguna,
  aria,
  afmoe,
  axk2,
  graniteMoe,
  minimax,
  flexOlmo,
  cohere2Moe,
  qwen3OmniMoe,
  qwen4Exp,
  openaiPrivacyFilter,
  dots3Note,
  mistral4,
  mistralLarge4,
  step3p7,
  ernie45VlMoe,
  jetMoe,
  dbrx,
  phiMoe,
  axk1,
  longcatFlash,
];
