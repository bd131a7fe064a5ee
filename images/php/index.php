<?php
// Touches what a usual application touches when it starts: extensions, a class tree, a template.
declare(strict_types=1);

$words = ['sluice', 'opens', 'the', 'gate'];
$collator = new Collator('en_US');
$collator->sort($words);
$document = new DOMDocument();
$document->appendChild($document->createElement('p', mb_convert_case(implode(' ', $words), MB_CASE_TITLE)));

header('Content-Type: text/plain');
echo "ready\n", $document->saveXML($document->documentElement), "\n";
