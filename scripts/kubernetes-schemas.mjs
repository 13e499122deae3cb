/**
 * Makes what kubeconform validates with out of the OpenAPI document of a Kubernetes version, and of definitions of further kinds: one strict
 * JSON schema a kind.
 *   node scripts/kubernetes-schemas.mjs SWAGGER_JSON DIRECTORY CUSTOM_RESOURCE_DEFINITION...
 * DIRECTORY gets KIND-GROUP-VERSION.json, and definitions.json, to which they refer.
 */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parse } from 'yaml';

const [source, directory, ...custom] = process.argv.slice(2);
const { definitions } = JSON.parse(readFileSync(source, 'utf8'));
const quantity = 'io.k8s.apimachinery.pkg.api.resource.Quantity';

/** OpenAPI 2 has no unions: where the API takes numbers for text it says so by a format or by the name of the type. */
function strict(schema, name) {
  if (name === quantity || schema.format === 'int-or-string' || schema['x-kubernetes-int-or-string'])
    return { type: ['string', 'number'] };
  if (schema.$ref !== undefined) return { $ref: schema.$ref.replace(/^#/, 'definitions.json#') };
  const made = { ...schema };
  if (schema.items !== undefined) made.items = strict(schema.items);
  if (schema.additionalProperties !== undefined)
    made.additionalProperties = strict(schema.additionalProperties);
  if (schema.properties === undefined) return made;
  const properties = Object.entries(schema.properties).map(([key, value]) => [key, strict(value)]);
  return { ...made, properties: Object.fromEntries(properties), additionalProperties: false };
}

const strictDefinitions = Object.fromEntries(
  Object.entries(definitions).map(([name, schema]) => [name, strict(schema, name)]),
);
for (const [name, schema] of Object.entries(strictDefinitions)) {
  // A manifest without them is not known by its kind.
  if (definitions[name]['x-kubernetes-group-version-kind']?.length === 1)
    schema.required = [...new Set([...(schema.required ?? []), 'apiVersion', 'kind'])];
}

mkdirSync(directory, { recursive: true });
writeFileSync(join(directory, 'definitions.json'), JSON.stringify({ definitions: strictDefinitions }));
for (const [name, schema] of Object.entries(definitions)) {
  for (const { group, version, kind } of schema['x-kubernetes-group-version-kind'] ?? []) {
    const file = [kind, group.split('.')[0], version]
      .filter((part) => part !== '')
      .join('-')
      .toLowerCase();
    writeFileSync(
      join(directory, `${file}.json`),
      JSON.stringify({ $ref: `definitions.json#/definitions/${name}` }),
    );
  }
}

const standardMetadata = {
  $ref: 'definitions.json#/definitions/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta',
};
for (const path of custom) {
  const { group, names, versions } = parse(readFileSync(path, 'utf8')).spec;
  for (const { name, schema } of versions) {
    const made = strict(schema.openAPIV3Schema);
    made.properties.metadata = standardMetadata;
    const file = `${names.kind}-${group.split('.')[0]}-${name}.json`.toLowerCase();
    writeFileSync(join(directory, file), JSON.stringify(made));
  }
}
